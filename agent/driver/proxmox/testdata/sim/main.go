// Command sim stands in for Proxmox's programs and for kvm in the driver's tests, by
// the name it is called as.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/homeiac/homelab/lab/pve"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "qm", "pvesm", "pvesh", "pveversion":
		hold(os.Args)
		os.Exit(pve.Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
	case "kvm":
		os.Exit(kvm(os.Args))
	default:
		fmt.Fprintf(os.Stderr, "%s: no such program\n", name)
		os.Exit(127)
	}
}

// hold keeps a program from beginning as long as the file hold-VERB lies beside its
// host's root, and says in held-VERB that it does.
func hold(argv []string) {
	if len(argv) < 2 {
		return
	}
	dir := filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(argv[0]))))
	for told := false; ; {
		if _, err := os.Stat(filepath.Join(dir, "hold-"+argv[1])); err != nil {
			return
		}
		if !told {
			_ = os.WriteFile(filepath.Join(dir, "held-"+argv[1]), []byte(strconv.Itoa(os.Getpid())), 0o644)
			told = true
		}
		time.Sleep(10 * time.Millisecond)
	}
}
