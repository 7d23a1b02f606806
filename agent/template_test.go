package agent

import (
	"testing"

	"github.com/homeiac/homelab/agent/image"
)

func TestATemplatesNameIsADNSName(t *testing.T) {
	for image, want := range map[string]string{
		"noble": "hl-template-noble", "debian_12.img": "hl-template-debian-12-img", "x.": "hl-template-x",
		"a0123456789012345678901234567890123456789012345678901234567890123456789": "hl-template-a01234567890123456789012345678901234567890123456789",
	} {
		if got := templateVMName(image); got != want || len(got) > 63 {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}

func TestAnISOFileIsNamedAsProxmoxDoes(t *testing.T) {
	if got := isoVolume("tank", image.Image{Path: "/mnt/tank/template/iso/tools-001122334455.iso"}); got != "tank:iso/tools-001122334455.iso" {
		t.Error(got)
	}
}
