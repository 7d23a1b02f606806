package k3s

import _ "embed"

// InstallScript is our stand-in for https://get.k3s.io: the same order,
// variables, files and messages, written for the guest shell. It downloads
// nothing.
//
//go:embed install.sh
var InstallScript []byte

// magic begins the stand-in for the k3s binary.
const magic = "#!hl-lab-k3s "

// StandInBinary is the file that stands for the k3s binary of that version
// ("v1.35.0+k3s1").
func StandInBinary(version string) []byte { return []byte(magic + version + "\n") }
