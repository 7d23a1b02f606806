package cli

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
)

// introduction is what the key of the proofs is derived from the fleet's for; controllers
// know it by the same name.
const introduction = "introduction of a root"

// rotation is one change of the root, as far as it has come.
type rotation struct {
	a     *app
	c     clientContext
	files rootFiles
	// fleetKey and passphrase are files; the latter may be empty.
	fleetKey, passphrase string
	finish               bool

	me     string // ROLE@NAME of the context's certificate
	secret []byte // the root's passphrase
	doc    rotationDoc
}

// rotationDoc is how it went, in JSON.
type rotationDoc struct {
	Root        rootDoc          `json:"root"`
	Kept        []string         `json:"kept"`
	Controllers []string         `json:"controllers"`
	Holders     []trustHolderDoc `json:"holders"`
	Certificate *certFile        `json:"certificate"`
	// Dropped is whether the new root is the only one, WaitsFor who needs the old one.
	Dropped  bool     `json:"dropped"`
	WaitsFor []string `json:"waitsFor"`
}

type rootDoc struct {
	Name     string  `json:"name"`
	SHA256   string  `json:"sha256"`
	NotAfter *string `json:"notAfter"`
	Cert     string  `json:"cert"`
	Key      string  `json:"key"`
}

type trustHolderDoc struct {
	Holder   string  `json:"holder"`
	State    string  `json:"state"`
	NotAfter *string `json:"notAfter"`
}

type certFile struct {
	Cert     string  `json:"cert"`
	NotAfter *string `json:"notAfter"`
}

func (a *app) rotateCACommand() *cobra.Command {
	r := rotation{a: a}
	cmd := &cobra.Command{
		Use: "rotate-ca", Short: "Give the fleet a new root CA", Args: cobra.NoArgs,
		Long: `rotate-ca puts a new root in the place of the one there is: because its key may have
been stolen or is lost, or because it ends. It says each step. Interrupted anywhere, the
same command goes on.

  1. a new root is made beside the old one, with the same passphrase
  2. it signs the issuing CA of each controller, of which all must answer
  3. both roots are trusted; agents and controllers renew their certificates at once
  4. you get a new certificate; the old root's files get another name
  5. the old root is trusted no more

A host that is off meanwhile comes back by itself. The last step waits for other people,
who must get new certificates (hlctl trust renew, or hl-controller issue-admin), and for
hosts that are there and have none yet; --finish shuts them out, and begins nothing.
While it waits the exit code is 3. No guest's mark depends on the root.

It needs your copy of the fleet's key, which whoever stole the root's does not have. If
the root's key is lost, it says what else is needed. What was issued while it was stolen
stays good: look through hlctl trust and hlctl audit, and revoke what you do not know.`,
		Example: "  hlctl trust rotate-ca\n  hlctl trust rotate-ca --finish",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if r.c, err = a.loadContext(); err != nil {
				return err
			}
			for flag, name := range map[*string]string{&r.files.cert: rootCertFile, &r.files.key: rootKeyFile, &r.fleetKey: fleetKeyFile} {
				*flag = cmp.Or(*flag, r.c.beside(name))
			}
			return r.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.files.cert, "root-cert", "", "the root's certificate (default "+rootCertFile+" beside the configuration)")
	f.StringVar(&r.files.key, "root-key", "", "the root's key (default "+rootKeyFile+" beside the configuration)")
	f.StringVar(&r.fleetKey, "fleet-key", "", "the fleet's key (default "+fleetKeyFile+" beside the configuration)")
	f.StringVar(&r.passphrase, "passphrase-file", "", "a file with the passphrase of the root's key, in its first line")
	f.BoolVar(&r.finish, "finish", false, "end the trust in the old root also for who still needs it")
	return cmd
}

func (r *rotation) run(ctx context.Context) error {
	if same, err := sameFile(r.c.CA, r.files.cert); err != nil {
		return err
	} else if same {
		return fmt.Errorf("the context's ca and the root's certificate are one file, %s: copy it, and say the copy as ca in %s", r.c.CA, r.c.where)
	}
	if err := r.endSwap(); err != nil {
		return err
	}
	begun, err := exists(r.files.next().cert)
	if err != nil {
		return err
	}
	creds, err := rpc.LoadTLS(r.c.CA, r.c.Cert, r.c.Key)
	if err != nil {
		return err
	}
	r.me = creds.Identity().String()
	c, err := r.a.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { c.close() }()
	trusted, err := ask(ctx, c.Trust, &controllerv1.TrustRequest{})
	if err != nil {
		return err
	}
	root, ending, err := r.ending(trusted)
	if err != nil {
		return err
	}
	r.doc.Controllers, r.doc.Kept, r.doc.Holders = []string{}, []string{}, []trustHolderDoc{}
	if ending && !begun && len(rpc.RootsAbove(creds.Leaf(), creds.Shown()[1:], []*x509.Certificate{root})) == 0 {
		return fmt.Errorf("%s is not below the new root, and the last step would shut you out: first hlctl trust renew", r.c.Cert)
	}
	// Said again after it was done, or when the answer was lost, --finish must not begin
	// another one: it would shut out at once who has a certificate of this root.
	idle := r.finish && !begun && !ending
	if !idle && (begun || !ending) {
		next, err := r.change(ctx, c, root)
		if err != nil {
			return err
		}
		root = next
		c.close()
		if c, err = r.a.connect(ctx); err != nil {
			return err
		}
	}
	r.doc.Root = rootDoc{root.Subject.CommonName, rpc.RootHash(root), timeOrNull(root.NotAfter), r.files.cert, r.files.key}
	if err := r.drop(ctx, c, root); err != nil {
		return err
	}
	if idle {
		r.say("There was nothing to finish: %q is the only root that is trusted. To give it up for a new one: hlctl trust rotate-ca", root.Subject.CommonName)
	}
	if err := r.a.print(r.doc, func() {}); err != nil {
		return err
	}
	if !r.doc.Dropped {
		return &exitError{code: exitPartial}
	}
	return nil
}

// say tells a step as it is done; in JSON all is told at the end.
func (r *rotation) say(format string, args ...any) {
	if r.a.format == "table" {
		fmt.Fprintf(r.a.out, format+"\n", args...)
	}
}

// ending says whether only the last step is missing: our root is the latest of several
// that are trusted.
func (r *rotation) ending(trusted *controllerv1.TrustResponse) (*x509.Certificate, bool, error) {
	root, err := readCert(r.files.cert)
	if err != nil {
		return nil, false, err
	}
	var roots []string
	for _, s := range trusted.GetAuthorities() {
		if s.GetRole() == "root" {
			roots = append(roots, s.GetSha256())
		}
	}
	if !slices.Contains(roots, rpc.RootHash(root)) {
		return nil, false, fmt.Errorf("%s is no root that the fleet trusts; compare with: hlctl trust", r.files.cert)
	}
	return root, len(roots) > 1 && roots[len(roots)-1] == rpc.RootHash(root), nil
}

// change is all but the last step: from then on nothing of ours needs the old root.
func (r *rotation) change(ctx context.Context, c *controller, old *x509.Certificate) (*x509.Certificate, error) {
	next, voucher, err := r.newRoot(ctx, old)
	if err != nil {
		return nil, err
	}
	root := next.Certificate()
	r.say("1. The new root is %q, until %s: %s", root.Subject.CommonName, day(root.NotAfter, false), r.files.next().cert)
	issuing, err := r.offer(ctx, c, root, voucher)
	if err != nil {
		return nil, err
	}
	r.say("2. All controllers answer: %s", strings.Join(r.doc.Controllers, ", "))
	req := &controllerv1.AddRootRequest{Sha256: rpc.RootHash(root)}
	for _, i := range issuing {
		cert, err := parseCert(i.GetCertificate())
		if err == nil {
			cert, err = next.Recertify(cert, issuingLife, time.Now())
		}
		if err != nil {
			return nil, fmt.Errorf("the issuing CA of controller %s: %w", i.GetController(), err)
		}
		req.Issuing = append(req.Issuing, &controllerv1.IssuingCertificate{
			Controller: i.GetController(), Certificate: rpc.EncodeCertificates([]*x509.Certificate{cert}),
		})
	}
	added, err := ask(ctx, c.AddRoot, req)
	if err != nil {
		return nil, err
	}
	r.say("3. Both roots are trusted.")
	r.tell(slices.DeleteFunc(added.GetHolders(), func(h *controllerv1.TrustHolder) bool { return h.GetHolder() == r.me }))
	if err := r.renew(ctx, next, added.GetRoots()); err != nil {
		return nil, err
	}
	kept, err := r.swap(old)
	if err != nil {
		return nil, err
	}
	r.say("   The new root's files are %s and %s, the old one's %s", r.files.cert, r.files.key, strings.Join(kept, " and "))
	r.doc.Kept = kept
	return root, nil
}

// newRoot makes the new root, or finds the one that was made, and the old one's word for
// it. Without the old key there is none.
func (r *rotation) newRoot(ctx context.Context, old *x509.Certificate) (*rpc.CA, []byte, error) {
	var was *rpc.CA
	there, err := exists(r.files.key)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case r.passphrase != "":
		if r.secret, err = readPassphrase(r.passphrase); err == nil && there {
			was, err = rpc.LoadCA(r.files.cert, r.files.key, r.secret)
		}
	case there:
		was, r.secret, err = r.a.openRoot(ctx, r.files.cert, r.files.key)
	default:
		r.say("The root's key %s is not there.", r.files.key)
		r.secret, err = r.a.passphrase(ctx, &founding{fleet: old.Subject.Organization[0]}, "")
	}
	if err != nil {
		return nil, nil, err
	}
	files := r.files.next()
	begun, err := exists(files.cert)
	if err != nil {
		return nil, nil, err
	}
	var next *rpc.CA
	if begun {
		next, err = rpc.LoadCA(files.cert, files.key, r.secret)
	} else if next, err = rpc.NextCA(old, rootLife, time.Now()); err == nil {
		if len(r.secret) > 0 {
			err = next.Seal(files.cert, files.key, r.secret)
		} else {
			err = next.Write(files.cert, files.key)
		}
	}
	if err != nil || was == nil {
		return next, nil, err
	}
	voucher, err := was.Vouch(next.Certificate())
	return next, voucher, err
}

// offer shows the new root to the controllers and gives their issuing CAs, which are
// known to be theirs by the fleet's key.
func (r *rotation) offer(ctx context.Context, c *controller, root *x509.Certificate, voucher []byte) ([]*controllerv1.IssuingCertificate, error) {
	text, err := os.ReadFile(r.fleetKey)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("your copy of the fleet's key %s is not there; a controller has it too (%s/%s), say where with --fleet-key", r.fleetKey, controllerState, fleetKeyFile)
	}
	if err != nil {
		return nil, err
	}
	fleet, err := mark.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.fleetKey, err)
	}
	key := fleet.Derive(introduction)
	resp, err := ask(ctx, c.OfferRoot, &controllerv1.OfferRootRequest{
		Root: rpc.EncodeCertificates([]*x509.Certificate{root}), Voucher: voucher, Proof: rpc.OfferProof(key, root),
	})
	if err != nil {
		return nil, err
	}
	issuing := make(map[string][]byte)
	for _, i := range resp.GetIssuing() {
		issuing[i.GetController()] = i.GetCertificate()
		r.doc.Controllers = append(r.doc.Controllers, i.GetController())
	}
	if !hmac.Equal(resp.GetProof(), rpc.IssuingProof(key, root, issuing)) {
		return nil, errors.New("whoever answers as a controller has not this fleet's key: nothing was signed; find out who it is with: hlctl version")
	}
	return resp.GetIssuing(), nil
}

var stateWords = map[controllerv1.TrustState]string{
	controllerv1.TrustState_TRUST_STATE_RENEWED: "renewed",
	controllerv1.TrustState_TRUST_STATE_LATE:    "late",
	controllerv1.TrustState_TRUST_STATE_OFF:     "off",
	controllerv1.TrustState_TRUST_STATE_PERSON:  "person",
}

// tell shows how far everybody is, and keeps it for the end.
func (r *rotation) tell(holders []*controllerv1.TrustHolder) {
	by := make(map[string][]string)
	r.doc.Holders, r.doc.WaitsFor = []trustHolderDoc{}, []string{}
	for _, h := range holders {
		state := stateWords[h.GetState()]
		by[state] = append(by[state], h.GetHolder())
		r.doc.Holders = append(r.doc.Holders, trustHolderDoc{h.GetHolder(), state, timeOrNull(timeOf(h.GetNotAfter()))})
		if state == "late" || state == "person" {
			r.doc.WaitsFor = append(r.doc.WaitsFor, h.GetHolder())
		}
	}
	for _, line := range [][2]string{
		{"renewed", "have a certificate of the new root"}, {"late", "are there and have none yet"},
		{"off", "are off; they get one when they come back"}, {"person", "must be given one"},
	} {
		if len(by[line[0]]) > 0 {
			r.say("   %s: %s", line[1], r.a.wrap(strings.Join(by[line[0]], ", "), len(line[1])+5))
		}
	}
}

// renew gives us a certificate of the new root, for the same key. It is tried at every
// controller before it takes the old one's place, with trust in nothing but the new root.
func (r *rotation) renew(ctx context.Context, next *rpc.CA, bundle []byte) error {
	creds, err := rpc.LoadTLS(r.c.CA, r.c.Cert, r.c.Key)
	if err != nil {
		return err
	}
	if len(rpc.RootsAbove(creds.Leaf(), nil, []*x509.Certificate{next.Certificate()})) > 0 {
		r.doc.Certificate = &certFile{r.c.Cert, timeOrNull(creds.NotAfter())}
		return durable.Write(r.c.CA, bundle)
	}
	id := creds.Identity()
	cert, err := next.Sign(creds.Public(), rpc.Identity{Role: id.Role, Name: id.Name}, nil, adminLife, time.Now())
	if err != nil {
		return err
	}
	tried, root := marked(r.c.Cert, "next"), marked(r.c.CA, "next")
	if err := errors.Join(durable.Write(tried, cert), durable.Write(root, next.Cert())); err != nil {
		return err
	}
	fresh, err := rpc.LoadTLS(root, tried, r.c.Key)
	if err != nil {
		return err
	}
	fresh.Log = slog.New(slog.DiscardHandler)
	// The list in force is signed below the old root still, which these do not trust; we
	// have it from those that do.
	if err := r.c.keepRevocations(fresh); err != nil {
		return err
	}
	for _, address := range r.c.Controllers {
		c, err := probe(ctx, fresh, address)
		if err != nil {
			how := ""
			if errors.Is(err, rpc.ErrUnavailable) {
				// One that was taken back instead of removed has its address there still.
				how = fmt.Sprintf("; if no controller is there any more, take the address out of %s", r.c.where)
			}
			return fmt.Errorf("with a certificate of the new root, at %s: %w; nothing of yours was changed%s; again: hlctl trust rotate-ca", address, err, how)
		}
		c.close()
	}
	was, err := os.ReadFile(r.c.Cert)
	if err != nil {
		return err
	}
	// The bundle first: it has both.
	if err := errors.Join(durable.Write(marked(r.c.Cert, "old"), was), durable.Write(r.c.CA, bundle), durable.Write(r.c.Cert, cert)); err != nil {
		return err
	}
	r.doc.Certificate = &certFile{r.c.Cert, timeOrNull(fresh.NotAfter())}
	r.say("4. You have a new certificate until %s: %s", day(fresh.NotAfter(), false), r.c.Cert)
	return errors.Join(os.Remove(tried), os.Remove(root))
}

// drop is the last step.
func (r *rotation) drop(ctx context.Context, c *controller, root *x509.Certificate) error {
	resp, err := ask(ctx, c.DropRoots, &controllerv1.DropRootsRequest{Sha256: rpc.RootHash(root), Force: r.finish})
	if err != nil {
		return err
	}
	r.doc.Dropped = resp.GetDropped()
	if !r.doc.Dropped {
		r.say("5. The old root is trusted still, since some need it.")
		r.tell(resp.GetHolders())
		r.say("   When they have new certificates: hlctl trust rotate-ca. To shut them out: hlctl trust rotate-ca --finish")
		return nil
	}
	if err := durable.Write(r.c.CA, resp.GetRoots()); err != nil {
		return err
	}
	r.say("5. The old root is trusted no more.")
	r.tell(resp.GetHolders())
	r.doc.WaitsFor = []string{}
	return nil
}
