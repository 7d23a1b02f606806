package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sshexec/sshtest"
)

// hostile are texts that are more than a name where a file's name, an argument, a
// property or a word of a script is made of them.
var hostile = []string{
	"../../etc/cron.d/x", "..", "/etc/passwd", "a/../../b", "a;rm -rf /", "$(id)", "`id`", "a|b", "a&b", "a>b", "a b", "a'b", `a"b`, `a\b`,
	"a\nb", "a\rb", "a\x00b", "a\x1b[2Jb", "a,import-from=/etc/shadow", "--delete", "-x", "--all", "~root", "{a,b}", "a#b", "a?b", "[a]", "!a", "%s%n",
	strings.Repeat("a", 64<<10),
}

// harmless are fields in which such a text is one, with the texts that are not: they
// are told or compared, quoted by YAML, or meant for a shell.
func harmless(f protoreflect.FullName, text string) bool {
	want, known := shapes[f]
	switch {
	case !known || strings.ContainsAny(text, "\x00\x1b\r"):
		return false
	case want.text:
		return true
	case len(text) > longestLine || strings.Contains(text, "\n"):
		return false
	case want.ok == nil:
		return true
	}
	return want.ok == address.ok && !strings.HasPrefix(text, "-") && text != ".." && !strings.Contains(text, " ")
}

// spoilt calls each with a request for every text field that a request can have, with
// that text in it alone.
func spoilt[M proto.Message](t *testing.T, whole M, text string, each func(field protoreflect.FullName, req M)) {
	t.Helper()
	var walk func(path []protoreflect.FieldDescriptor, m protoreflect.MessageDescriptor)
	walk = func(path []protoreflect.FieldDescriptor, m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			here := append(path[:len(path):len(path)], f)
			switch {
			case f.Kind() == protoreflect.MessageKind && !strings.HasPrefix(string(f.Message().FullName()), "google."):
				walk(here, f.Message())
			case f.Kind() == protoreflect.StringKind:
				req := proto.CloneOf(whole)
				m := req.ProtoReflect()
				for _, f := range here[:len(here)-1] {
					if f.IsList() {
						list := m.Mutable(f).List()
						if list.Len() == 0 {
							list.AppendMutable()
						}
						m = list.Get(0).Message()
						continue
					}
					m = m.Mutable(f).Message()
				}
				if f.IsList() {
					m.Mutable(f).List().Append(protoreflect.ValueOfString(text))
				} else {
					m.Set(f, protoreflect.ValueOfString(text))
				}
				each(f.FullName(), req)
			}
		}
	}
	walk(nil, whole.ProtoReflect().Descriptor())
}

// tree is what all files below a folder hold.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = fmt.Sprintf("%x", sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestAHostileTextInAnyFieldIsRefusedWithoutEffect: in every text field that a request
// can have, found by the descriptors, for every action.
func TestAHostileTextInAnyFieldIsRefusedWithoutEffect(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := filepath.Dir(w.root)
	before, n := tree(t, dir), 0
	for action := range homelabv1.Action_name {
		if action == 0 {
			continue
		}
		whole := w.request(homelabv1.Action(action))
		for _, text := range hostile {
			spoilt(t, whole, text, func(field protoreflect.FullName, req *agentv1.RunRequest) {
				n++
				if harmless(field, text) {
					return
				}
				s := &stream{ctx: t.Context()}
				err := w.svc.Run(req, s)
				if kind := rpc.KindOf(err); kind != rpc.ErrInvalid && kind != rpc.ErrRefused {
					t.Fatalf("%s: %s = %q: %v", homelabv1.Action(action), field, text[:min(len(text), 80)], err)
				}
				if len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\x00\x1b\r") {
					t.Errorf("%s: its error is %d bytes: %q", field, len(err.Error()), err.Error()[:80])
				}
			})
		}
	}
	if n < 20000 {
		t.Errorf("only %d requests were tried", n)
	}
	if len(w.hyp.calls) != 0 {
		t.Errorf("qm was called: %v", w.hyp.calls)
	}
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("files changed: %s", diff)
	}
}

// TestEveryShapeIsOfAField holds the table to fields that there are.
func TestEveryShapeIsOfAField(t *testing.T) {
	there := map[protoreflect.FullName]bool{}
	for _, m := range requests(t) {
		spoilt(t, m, "x", func(f protoreflect.FullName, _ proto.Message) { there[f] = true })
	}
	for f := range shapes {
		if !there[f] {
			t.Errorf("there is a shape for %s, and no such field", f)
		}
	}
}

// requests are the requests of all calls that an agent answers, by the method's name.
func requests(t *testing.T) map[string]proto.Message {
	t.Helper()
	all := map[string]proto.Message{}
	for _, f := range []protoreflect.FileDescriptor{agentv1.File_homelab_agent_v1_agent_proto, agentv1.File_homelab_agent_v1_peer_proto} {
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				kind, err := protoregistry.GlobalTypes.FindMessageByName(methods.Get(j).Input().FullName())
				if err != nil {
					t.Fatal(err)
				}
				all[string(methods.Get(j).Name())] = kind.New().Interface()
			}
		}
	}
	return all
}

// TestHostileTextsInOtherCallsAreRefused: in every call but Run, of which a test of its
// own has more, and Observe, which never fails. A new call with a text is not in the
// table, and fails.
func TestHostileTextsInOtherCallsAreRefused(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Dir(w.root)
	w.svc.trust = &trust{}
	calls := map[string]func(proto.Message) error{
		"Exec": func(m proto.Message) error {
			req := m.(*agentv1.ExecRequest)
			if len(req.GetArgv()) == 0 {
				req.Argv = []string{"id"}
			}
			return w.svc.Exec(req, nopExec{})
		},
		"Credentials": func(m proto.Message) error {
			req := m.(*agentv1.CredentialsRequest)
			req.Kind = agentv1.CredentialsKind_CREDENTIALS_KIND_TOKEN
			_, err := w.svc.Credentials(t.Context(), req)
			return err
		},
		"ResolveImage": func(m proto.Message) error {
			_, err := w.svc.ResolveImage(t.Context(), m.(*agentv1.ResolveImageRequest))
			return err
		},
		"SetTrust": func(m proto.Message) error {
			_, err := w.svc.SetTrust(t.Context(), m.(*agentv1.SetTrustRequest))
			return err
		},
		"Pull": func(m proto.Message) error {
			return (&peerService{service: w.svc}).Pull(m.(*agentv1.PullRequest), nil)
		},
	}
	before, n := tree(t, dir), 0
	for name, m := range requests(t) {
		if name == "Run" || name == "Observe" {
			continue
		}
		for _, text := range hostile {
			spoilt(t, m, text, func(field protoreflect.FullName, req proto.Message) {
				// A command's arguments arrive as they are, and are quoted.
				if field == "homelab.agent.v1.ExecRequest.argv" || harmless(field, text) {
					return
				}
				n++
				if calls[name] == nil {
					t.Fatalf("%s takes texts and is not tried here", name)
				}
				if err := calls[name](req); !errors.Is(err, rpc.ErrInvalid) || len(err.Error()) > 1000 {
					t.Fatalf("%s: %s = %q: %v", name, field, text[:min(len(text), 80)], err)
				}
			})
		}
	}
	if n < 1000 || len(w.hyp.calls) != 0 {
		t.Errorf("%d were tried, qm was called: %v", n, w.hyp.calls)
	}
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("files changed: %s", diff)
	}
}

// TestNobodyLooksIntoAGuestByAHostileText: what a look is for is not seen then, and the
// rest of the observation is.
func TestNobodyLooksIntoAGuestByAHostileText(t *testing.T) {
	w := newWorld(t)
	w.hyp.vms[201] = running(w)
	w.guestOS(func(c sshtest.Command) int { t.Errorf("ran %q", c.Line); return 0 })
	n := 0
	for _, text := range hostile {
		whole := &agentv1.ObserveRequest{Looks: []*agentv1.LookRequest{{Want: w.want(), Cluster: true}}}
		spoilt(t, whole, text, func(field protoreflect.FullName, req *agentv1.ObserveRequest) {
			if harmless(field, text) {
				return
			}
			n++
			r, err := w.svc.Observe(t.Context(), req)
			if err != nil || !isYes(r.GetObservation().GetVmsKnown()) {
				t.Fatalf("%s = %q: %v", field, text[:min(len(text), 80)], err)
			}
			for _, l := range r.GetObservation().GetLooks() {
				if l.GetSsh().GetTruth() != homelabv1.Truth_TRUTH_UNKNOWN || l.GetK3S().GetLooked().GetTruth() != homelabv1.Truth_TRUTH_UNKNOWN || len(l.GetSsh().GetReason()) > 1000 {
					t.Fatalf("%s = %q: %v", field, text[:min(len(text), 80)], l)
				}
			}
		})
	}
	if n < 1000 {
		t.Errorf("only %d were tried", n)
	}
}

// nopExec is a stream to nobody.
type nopExec struct {
	agentv1.AgentService_ExecServer
}

func (nopExec) Context() context.Context { return context.Background() }

func TestWhatAGuestReallyIsMadeOfIsLetIn(t *testing.T) {
	w := newWorld(t)
	req := w.request(homelabv1.Action_ACTION_JOIN)
	req.Want.Hardware.Pci, req.Want.Hardware.Usb = []string{"0000:b3:00.0,pcie=1", "mapping=gpu,mdev=nvidia-63"}, []string{"18d1:9302", "1-1.2,usb3=1"}
	req.Want.Hardware.Hookscript, req.Want.Hardware.Machine, req.Want.Hardware.Tags = "local:snippets/hook.sh", "pc-q35-9.0+pve1", []string{"k3s", "a+b"}
	req.Want.Hardware.Dns, req.Want.KnownAddresses = []string{"::1", "192.168.4.1"}, []string{"fe80::1", "10.0.0.1"}
	req.Want.Hardware.Nics[0].Subnet, req.Want.Hardware.Nics[0].Gateway = "2001:db8::/64", "2001:db8::1"
	req.Want.Verify = []string{"test -e /etc/x && echo \"$(id)\"\ntrue"}
	req.Want.AuthorizedKeys = []string{`from="10.0.0.0/8" ssh-ed25519 AAAA me & you`}
	req.Want.Image.Url = "https://user:p%40ss@cloud.example/a%20b/img?x=1&y=$z"
	req.Soak = durationpb.New(1)
	req.K3S = &homelabv1.K3SWant{
		Version: "v1.35.0+k3s1", ServerUrl: "https://[2001:db8::1]:6443", TlsSans: []string{"*.k3s.example", "10.0.0.1"},
		ConfigYaml: "disable: [traefik]\n", Labels: []string{"example.org/gpu=a100", "x="}, Script: "https://get.k3s.io", Binary: "file:/var/lib/x/k3s",
	}
	req.Member = &homelabv1.MemberRef{Node: "k3s-1.example.org", EtcdName: "k3s-1-0a1b2c3d", EtcdId: "8e9e05c52164694d", Addresses: []string{"10.0.0.1"}}
	if err := checkFields(req); err != nil {
		t.Error(err)
	}
}

func TestAnImageComesFromNowhereButItsFoldersAndTheWeb(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Dir(w.root)
	w.put("../outside.img", string(imageFile()))
	if err := os.Symlink(filepath.Join(dir, "outside.img"), filepath.Join(w.cfg.FileRoots[0], "link.img")); err != nil {
		t.Fatal(err)
	}
	before := tree(t, dir)
	for _, url := range []string{
		"file:" + filepath.Join(dir, "outside.img"), "file:" + w.cfg.FileRoots[0] + "/../outside.img", "file:" + w.cfg.FileRoots[0] + "/link.img",
		"file:../outside.img", "file:///etc/passwd", "/etc/passwd", "../../etc/passwd", "ftp://127.0.0.1/x", "data:,x", "$(id)", "https:///x", "http://[::1", "unix:///run/x",
	} {
		req := w.request(homelabv1.Action_ACTION_FETCH)
		req.Image.Url = url
		if _, err := w.do(req); err == nil {
			t.Errorf("%s was fetched", url)
		}
	}
	after := tree(t, dir)
	delete(after, filepath.Join(w.cfg.State, "fence.json")) // the steps were begun
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("files changed: %s", diff)
	}
}
