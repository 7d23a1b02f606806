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
section active-server 3 systemctl is-active k3s
section enabled-server 3 systemctl is-enabled k3s
section active-agent 3 systemctl is-active k3s-agent
section enabled-agent 3 systemctl is-enabled k3s-agent
exit 0
