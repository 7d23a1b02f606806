package mark

import "testing"

// FuzzMark: what stands in a VM's description is anybody's. It is a mark of ours only
// when it is the very one that was made.
func FuzzMark(f *testing.F) {
	key, err := NewKey(make([]byte, KeySize))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(Make(key, "home", "k3s-1", 201, "u", 3))
	f.Add("hl1:home:k3s-1:1:00112233445566778899aabbccddeeff")
	f.Add("hl1:home:k3s-1:-1:")
	f.Add("hl1:::0:\n")
	f.Add("hl1:home:k3s-1:2147483648:00112233445566778899aabbccddeeff")
	f.Fuzz(func(t *testing.T, text string) {
		generation, err := Verify(key, "home", "k3s-1", 201, "u", text)
		m, parsed := Parse(text)
		if err == nil && (parsed != nil || m.Guest != "k3s-1" || m.Generation != generation) {
			t.Fatalf("%q verifies and is %+v, %v", text, m, parsed)
		}
		if _, err := Verify(key, "home", "k3s-1", 202, "u", text); err == nil {
			// The one that was made for that VMID would have to be guessed.
			t.Fatalf("%q is of VM 202 too", text)
		}
		_, _ = TemplateOf(text)
		_ = TemplateName(text)
		if _, err := ParseKey([]byte(text)); err == nil && len(text) < KeySize {
			t.Fatalf("%q is a key", text)
		}
	})
}
