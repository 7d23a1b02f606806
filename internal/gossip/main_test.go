package gossip

import (
	"flag"
	"os"
	"testing"
)

// These tests wait for the network, not for the processor.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
