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
section name 2 cat /var/lib/rancher/k3s/server/db/etcd/name
section ca 2 cat /var/lib/rancher/k3s/server/tls/etcd/server-ca.crt
section cert 2 cat /var/lib/rancher/k3s/server/tls/etcd/client.crt
section key 2 cat /var/lib/rancher/k3s/server/tls/etcd/client.key
if [ "$code" != 0 ]; then
	section other-cert 2 cat /var/lib/rancher/k3s/server/tls/etcd/server-client.crt
	section other-key 2 cat /var/lib/rancher/k3s/server/tls/etcd/server-client.key
fi
exit 0
