# One machine of a site, from switching it on until its power is gone; it boots again when
# it asks for that. Runs in the site's namespaces. Arguments: its name, its number, the
# first three numbers of the addresses, the name of the site's control group.
name=$1 number=$2 net=$3 group=$4
for tree in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
	[ -e "$tree/cgroup.procs" ] || continue
	mkdir -p "$tree/$group/$name"
	echo $$ >"$tree/$group/$name/cgroup.procs"
done
cd "/run/site/$name"
if ! mountpoint -q root; then
	mount -t overlay overlay -o lowerdir=/run/site/base,upperdir=upper,workdir=work root
	# The network as a Proxmox host has it: a bridge with the card in it. The guest's
	# address is the bridge's too, since a guest is a process here.
	ip netns add "$name"
	ip link add "$name" type veth peer name eno1 netns "$name"
	ip link set "$name" master lan
	ip -n "$name" link set lo up
	ip -n "$name" link add vmbr0 type bridge
	ip -n "$name" link set eno1 master vmbr0 up
	ip -n "$name" address add "$net.$number/24" dev vmbr0
	ip -n "$name" address add "$net.$((100 + number))/32" dev vmbr0
	ip -n "$name" link set vmbr0 up
	ip -n "$name" route add default via "$net.254"
fi
ip link set "$name" up # it was down with the power
while :; do
	code=0
	# In its network already: with --network-namespace-path /sys would show another one's.
	nsenter --net="/run/netns/$name" \
		systemd-nspawn --quiet --directory=root --machine="$name" --boot --capability=CAP_NET_ADMIN \
		--register=no --keep-unit --link-journal=no --resolv-conf=off --timezone=off --console=pipe \
		--bind-ro=/run/site/bin:/opt/lab --bind=/run/site/lab:/var/lib/homelab || code=$?
	[ "$code" = 133 ] || exit "$code" # it does not reboot
done
