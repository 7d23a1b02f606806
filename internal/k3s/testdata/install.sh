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
unset K3S_URL K3S_TOKEN K3S_TOKEN_FILE K3S_AGENT_TOKEN K3S_CONFIG_FILE
unset INSTALL_K3S_COMMIT INSTALL_K3S_PR INSTALL_K3S_CHANNEL INSTALL_K3S_NAME INSTALL_K3S_SKIP_START INSTALL_K3S_SKIP_ENABLE
export INSTALL_K3S_VERSION='v1.35.0+k3s1' INSTALL_K3S_EXEC='server' INSTALL_K3S_FORCE_RESTART=true
section install 600 sh /var/lib/hl/k3s-install.sh
section unit 5 systemctl is-active k3s
section journal 10 journalctl -u k3s -n 40 --no-pager -o cat
exit 0
