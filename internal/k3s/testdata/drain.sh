export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin
timeout -k 1 65 k3s kubectl drain 'k3s-2' --ignore-daemonsets --delete-emptydir-data --force --timeout=60s
