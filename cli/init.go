package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/homeiac/homelab/cli/discover"
	"github.com/homeiac/homelab/internal/spec"
)

func (a *app) initCommand() *cobra.Command {
	var f founding
	var controller, passphrase, env string
	var login sshFlags
	from := fromHosts{dial: dialRemote, listening: discover.Listening}
	cmd := &cobra.Command{
		Use: "init FLEET --controller NAME@IP", Short: "Begin a fleet: its keys, your certificate, a first Spec", Args: cobra.ExactArgs(1),
		Long: `init makes what a fleet begins with, on this machine, and asks nobody:

  the root CA, whose key stays here and makes all other certificates
  the fleet's key, by which guests are known as ours
  your certificate, and a context in hlctl's configuration
  a folder controller-NAME with all that the first controller needs on its host
  a Spec to go on with

Back up the root's key and the fleet's key. The root's key gets a passphrase with
--passphrase-file, or when one is typed; without a terminal it has none.

--from-hosts root@HOST,root@HOST looks at Proxmox VE hosts over SSH and writes a Spec
that fits them: bridges, storages, and their VMs, commented out, for adoption. It only
reads, and nothing is run in a VM. What is known of their addresses is asked for an
answer on port 6443. If one host cannot be looked at, nothing is made.

--from-env FILE reads the .env file of this project's predecessor and writes what it
knows into the Spec; docs/install.md has the table. Of keys that are not in it nothing
is shown or written.

init is safe to repeat: what is there stays as it is, what is missing of an init that
was interrupted is made.`,
		Example: `  hlctl init home --controller pve1@192.168.4.11
  hlctl init home --controller pve1@192.168.4.11 --from-hosts root@pve1,root@pve2
  hlctl init home --controller pve1@192.168.4.11 --from-env .env --out homelab.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.fleet = args[0]
			if !spec.IsName(f.fleet) {
				return fmt.Errorf("%q is not the name of a fleet: lower-case letters, digits and inner hyphens, 63 at most", f.fleet)
			}
			if err := f.place(controller); err != nil {
				return err
			}
			// A variable of a script that is not set: what was meant is not left out, the
			// passphrase least of all.
			for _, name := range []string{"from-hosts", "from-env", "passphrase-file"} {
				if flag := cmd.Flags().Lookup(name); flag.Changed && strings.Trim(flag.Value.String(), "[]") == "" {
					return fmt.Errorf("--%s is empty; leave it out, or say what is meant", name)
				}
			}
			if f.config = a.config; f.config == "" {
				var err error
				if f.config, err = defaultConfig(); err != nil {
					return fmt.Errorf("%w; say where the client configuration is to be with --config FILE", err)
				}
			}
			if err := from.check(); err != nil {
				return err
			}
			from.options = a.sshOptions(login)
			return a.init(cmd.Context(), &f, passphrase, env, &from)
		},
	}
	cmd.Flags().StringVar(&controller, "controller", "", "NAME@IP of the first controller: a name of yours, and its host's address")
	cmd.Flags().StringVar(&f.dir, "dir", "", "the folder for keys and certificates (default beside the configuration)")
	cmd.Flags().StringVar(&f.spec, "out", "homelab.yaml", "the Spec to write")
	cmd.Flags().StringVar(&f.admin, "name", "admin", "whose certificate yours is")
	cmd.Flags().StringVar(&passphrase, "passphrase-file", "", "a file with the passphrase of the root's key, in its first line")
	cmd.Flags().StringVar(&env, "from-env", "", "a .env file of the predecessor")
	cmd.Flags().StringSliceVar(&from.targets, "from-hosts", nil, "Proxmox VE hosts to look at, as root@HOST[:PORT], with commas between")
	cmd.Flags().StringArrayVar(&from.hostKeys, "host-key", nil, "SHA256:... of a host's SSH key that is not known yet; once for each of --from-hosts")
	login.addLogin(cmd)
	_ = cmd.MarkFlagRequired("controller")
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

// place reads NAME@IP.
func (f *founding) place(controller string) error {
	name, address, ok := strings.Cut(controller, "@")
	ip, err := netip.ParseAddr(address)
	if !ok || err != nil || ip.IsUnspecified() || ip.Zone() != "" || !spec.IsName(name) {
		return fmt.Errorf("--controller %q: it is NAME@IP (pve1@192.168.4.11), a name of yours and the address of the host", controller)
	}
	f.controller, f.address = name, ip
	return nil
}

func (a *app) init(ctx context.Context, f *founding, passphraseFile, env string, from *fromHosts) error {
	d := &dotenv{}
	if env != "" {
		data, err := os.ReadFile(env)
		if err != nil {
			return err
		}
		d = parseDotenv(data)
	}
	if err := f.settle(); err != nil {
		return err
	}
	there, err := exists(f.spec)
	if err != nil {
		return err
	}
	if from.unasked = there && len(from.targets) > 0; !from.unasked {
		if from.found, err = from.look(ctx, d, func(text string) { fmt.Fprintln(a.errw, text) }); err != nil {
			return err
		}
	}
	text := startingSpec(f.fleet, d, from.found)
	if _, faults := spec.Parse(f.spec, text); len(faults) > 0 {
		return fmt.Errorf("the Spec that would be written has faults, nothing was made: %w", faultsErr(faults))
	}
	if !f.done {
		if err := f.keys(func() ([]byte, error) { return a.passphrase(ctx, f, passphraseFile) }, a.loader(ctx, passphraseFile)); err != nil {
			return err
		}
	}
	if err := f.write("the Spec", f.spec, text); err != nil {
		return err
	}
	doc := f.doc()
	doc.Hosts = from.doc()
	return a.print(doc, func() { a.showFounding(f, d, env, from) })
}

// passphrase is that for a new root's key; nil is none.
func (a *app) passphrase(ctx context.Context, f *founding, file string) ([]byte, error) {
	if file != "" {
		return readPassphrase(file)
	}
	ask := a.secret()
	if ask == nil {
		return nil, nil
	}
	first, err := ask(ctx, "A passphrase for the root's key of fleet "+f.fleet+" (empty for none): ")
	if err != nil || first == "" {
		return nil, err
	}
	again, err := ask(ctx, "Again: ")
	if err != nil {
		return nil, err
	}
	if first != again {
		return nil, errors.New("the passphrases differ; nothing was made of the root")
	}
	return []byte(first), nil
}

func readPassphrase(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimRight(line, "\r"); line == "" {
		return nil, fmt.Errorf("%s: its first line is empty and no passphrase", file)
	}
	return []byte(line), nil
}

// foundingDoc is what init made and what was there, in JSON.
type foundingDoc struct {
	Fleet      string     `json:"fleet"`
	Dir        string     `json:"dir"`
	Context    string     `json:"context"`
	Current    string     `json:"current"`
	Passphrase bool       `json:"passphrase"`
	Made       []pieceDoc `json:"made"`
	Kept       []pieceDoc `json:"kept"`
	Missing    []pieceDoc `json:"missing"`
	Hosts      []foundDoc `json:"hosts"`
}

type pieceDoc struct {
	What string `json:"what"`
	Path string `json:"path"`
}

func (f *founding) doc() foundingDoc {
	return foundingDoc{
		Fleet: f.fleet, Dir: f.dir, Context: f.fleet, Current: f.current, Passphrase: f.sealed,
		Made: append([]pieceDoc{}, f.made...), Kept: append([]pieceDoc{}, f.kept...), Missing: append([]pieceDoc{}, f.missing...),
	}
}

func (a *app) showFounding(f *founding, d *dotenv, env string, from *fromHosts) {
	a.showFound(from, f.spec)
	for _, list := range []struct {
		title  string
		pieces []pieceDoc
	}{{"Made for fleet " + f.fleet + ":", f.made}, {"There already, and left as it is:", f.kept}, {"Not there any more, and not made again:", f.missing}} {
		if len(list.pieces) == 0 {
			continue
		}
		fmt.Fprintln(a.out, list.title)
		for _, p := range list.pieces {
			fmt.Fprintf(a.out, "  %-24s %s\n", p.What, p.Path)
		}
		fmt.Fprintln(a.out)
	}
	if env != "" {
		for _, line := range d.unread {
			fmt.Fprintf(a.out, "%s:%d is no KEY=VALUE and was left out.\n", env, line)
		}
		fmt.Fprintf(a.out, "Of %s %s left out, which mean nothing in a Spec.\n\n", env, plural(d.unknown(), "key was", "keys were"))
	}
	if f.rootThere {
		with := "has no passphrase: who reads the file can make any certificate of the fleet"
		if f.sealed {
			with = "has a passphrase"
		}
		fmt.Fprintf(a.out, "The root's key %s.\n", with)
	}
	fmt.Fprintf(a.out, `Back up these two, elsewhere than here. The first makes your certificate anew and further
controllers; the second proves which guests are yours, and nothing can replace it:
  %s
  %s
`, f.path(rootKeyFile), f.path(fleetKeyFile))
	if f.current != f.fleet {
		fmt.Fprintf(a.out, "The current context stays %s; say --context %s, or write current: %s into %s.\n", f.current, f.fleet, f.fleet, f.config)
	}
	fmt.Fprint(a.out, "\nNext (docs/install.md tells each command):\n")
	switch hosts := from.toAdd(f.address); {
	case hosts != "":
		fmt.Fprintf(a.out, "  hlctl hosts add %s\n", hosts)
	case slices.ContainsFunc(f.missing, func(p pieceDoc) bool { return p.Path == f.folder() }):
		fmt.Fprintln(a.out, "  hlctl hosts add root@HOST   for each host")
	default:
		fmt.Fprintf(a.out, "  hlctl hosts add root@%s   sets up the controller there, and the agent\n", f.address)
		fmt.Fprintln(a.out, "  hlctl hosts add root@HOST   for each other host")
	}
	fmt.Fprintf(a.out, "  fill in %s, then: hlctl plan -f %s\n", f.spec, f.spec)
}

// exists says whether a file is there; what cannot be told is an error.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (f *founding) path(name string) string { return filepath.Join(f.dir, name) }

// folder is what goes to the controller's host.
func (f *founding) folder() string { return f.path("controller-" + f.controller) }
