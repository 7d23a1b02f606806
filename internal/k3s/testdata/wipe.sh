export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin
code=0
section() {
	name=$1
	limit=$2
	shift 2
	printf '@@hl begin %s\n' "$name"
	timeout -k 1 "$limit" "$@" 2>&1
	code=$?
	printf '\n@@hl end %s %s\n' "$name" "$code"
}
section stop 60 systemctl stop k3s
if [ "$code" != 0 ]; then
	section kill 10 systemctl kill --signal=KILL k3s
	section again 20 systemctl stop k3s
fi
section disable 20 systemctl disable k3s
section unit 5 systemctl is-active k3s
section journal 10 journalctl -u k3s -n 40 --no-pager -o cat
section uninstall 120 /usr/local/bin/k3s-uninstall.sh
section password 3 rm -f /etc/rancher/node/password
section files 2 ls -d /usr/local/bin/k3s /var/lib/rancher/k3s/server/db/etcd/member /var/lib/rancher/k3s/server/db/state.db /var/lib/rancher/k3s/agent/client-ca.crt /etc/rancher/node/password /usr/local/bin/k3s-uninstall.sh /usr/local/bin/k3s-agent-uninstall.sh
exit 0
