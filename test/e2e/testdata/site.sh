# The first process of a site's namespaces: it makes the network and then waits for the end
# of its standard input. Arguments: the site's folder, the Debian that all machines start
# from, our programs, the first three numbers of the addresses.
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir /run/site
mount --bind "$1" /run/site
mount --bind "$2" /run/site/base
mount --bind "$3" /run/site/bin
# systemd-nspawn leaves folders there when it is killed.
mount -t tmpfs tmpfs /tmp
ip link set lo up
ip link add lan type bridge
ip address add "$4.254/24" dev lan
ip link set lan up
echo ready
exec cat >/dev/null
