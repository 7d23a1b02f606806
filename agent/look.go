package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/agent/guest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
)

// Limits of one look into one guest: it ends a little before the caller's
// patience does, so that one mute guest does not cost the whole observation.
const (
	lookLimit   = 5 * time.Second
	lookMargin  = 500 * time.Millisecond
	lookAtLeast = time.Second
)

func lookTime(ctx context.Context) time.Duration {
	end, ok := ctx.Deadline()
	if !ok {
		return lookLimit
	}
	return min(lookLimit, max(time.Until(end)-lookMargin, lookAtLeast))
}

// look sees what is inside a guest over SSH. It never fails: what cannot be seen
// is unknown. The guest agent is not used, since running a script through it
// starts a process on the host; that it answers is the driver's to say.
func (s *Service) look(ctx context.Context, req *agentv1.LookRequest, vm *homelabv1.VirtualMachine) *homelabv1.GuestLook {
	ctx, cancel := context.WithTimeout(ctx, lookTime(ctx))
	defer cancel()
	want := req.GetWant()
	l := &homelabv1.GuestLook{Identity: want.GetIdentity(), At: timestamppb.New(s.now()), GuestAgent: vm.GetGuestAgent()}
	blind := func(reason string) *homelabv1.GuestLook {
		l.CloudInit, l.Booted = factUnknown(reason), factUnknown(reason)
		l.K3S = &homelabv1.K3SLook{
			Looked: factUnknown(reason), ServerActive: factUnknown(reason), AgentActive: factUnknown(reason),
			ServerData: factUnknown(reason), AgentData: factUnknown(reason),
		}
		if req.GetCluster() {
			l.K3S.Nodes = &homelabv1.NodesView{Known: factUnknown(reason)}
			l.K3S.Etcd = &homelabv1.EtcdView{Known: factUnknown(reason)}
		}
		return l
	}
	if err := checkFields(req); err != nil {
		l.Ssh = factUnknown(err.Error())
		return blind(err.Error())
	}
	t, err := s.target(want, vm.GetAddresses())
	if err != nil {
		l.Ssh = factUnknown(err.Error())
		return blind(err.Error())
	}
	sh, err := guest.Open(ctx, t, nil, nil, guest.Who{})
	l.Ssh = sshFact(err)
	if err != nil {
		l.SshWhy = sshWhy(err)
		l.Addresses = vm.GetAddresses()
		return blind(err.Error())
	}
	defer sh.Close()
	var etcd *homelabv1.EtcdView
	var names []string
	var asked sync.WaitGroup
	if req.GetCluster() {
		asked.Go(func() { etcd = etcdView(ctx, sh) })
		asked.Go(func() { names = servingNames(ctx, sh) })
	}
	// A look that is cut off tells what it saw until then.
	res, runErr := sh.Run(ctx, k3s.ProbeScript, nil)
	asked.Wait()
	p, err := k3s.ParseProbe(res.Stdout)
	if err != nil {
		if runErr != nil {
			err = runErr
		}
		return blind(err.Error())
	}
	if id := want.GetMachineId(); id != "" && p.MachineID.Known && p.MachineID.Value != id {
		// A clone has the guest's host key and perhaps its address: what it holds,
		// or does not hold, is not the guest's.
		why := "another machine answers: its machine-id is " + p.MachineID.Value + " and should be " + id
		blind(why)
		l.MachineId, l.Ssh, l.Booted, l.SshWhy = p.MachineID.Value, factNo(why), factNo(why), anotherMachine
		return l
	}
	fillLook(l, want, p)
	if p.CloudInit.Known && p.CloudInit.Value.Failed() {
		if res, err := sh.Run(ctx, guest.CloudInitLog, nil); err == nil {
			l.CloudInit.Reason += "\n" + strings.TrimSpace(string(res.Stdout))
		}
	}
	if req.GetCluster() {
		l.K3S.Nodes = nodesView(p.Nodes)
		l.K3S.Etcd = etcd
		l.K3S.ServingNames = names
	}
	return l
}

// anotherMachine is the word for SSH that answers as another machine than the guest
// would: a clone has its host key.
const anotherMachine = "machine"

// sshWhy is the word for how SSH failed.
func sshWhy(err error) string {
	var se *guest.SSHError
	if errors.As(err, &se) {
		return string(se.Why)
	}
	return string(guest.Broken)
}

// servingLimit bounds the look at the API's certificate.
const servingLimit = time.Second

// servingNames are the names in the certificate that the API on this server shows,
// nil when none was seen. Nothing is sent to it, so it need not be trusted.
func servingNames(ctx context.Context, sh *guest.Shell) []string {
	ctx, cancel := context.WithTimeout(ctx, servingLimit)
	defer cancel()
	raw, err := sh.Conn().DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(k3s.APIPort)))
	if err != nil {
		return nil
	}
	defer raw.Close()
	// A tunnel through SSH knows no deadline.
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	var names []string
	conn := tls.Client(raw, &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // its names are told, it is not believed
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) > 0 {
				names = slices.Clone(cs.PeerCertificates[0].DNSNames)
				for _, ip := range cs.PeerCertificates[0].IPAddresses {
					names = append(names, ip.String())
				}
			}
			return nil
		},
	})
	_ = conn.HandshakeContext(ctx) // one that asks for our certificate has shown its own
	slices.Sort(names)
	return slices.Compact(names)
}

// fillLook turns what the probe saw into facts.
func fillLook(l *homelabv1.GuestLook, want *homelabv1.GuestWant, p k3s.Probe) {
	l.Hostname, l.MachineId = p.Hostname.Value, p.MachineID.Value
	for _, a := range p.Addresses.Value {
		l.Addresses = append(l.Addresses, a.Prefix.String())
	}
	l.CloudInit = factUnknown(p.CloudInit.Reason)
	if p.CloudInit.Known {
		c := p.CloudInit.Value
		text := strings.Join(append([]string{c.Status}, c.Errors...), "; ")
		if l.CloudInit = factNo(text); c.Done() {
			l.CloudInit = factYes(text)
		}
	}
	// Before cloud-init is done a guest has the image's hostname.
	if p.CloudInit.Known && p.CloudInit.Value.Done() && p.Hostname.Known && want.GetNodeName() != "" && p.Hostname.Value != want.GetNodeName() {
		l.SshWhy = anotherMachine
	}
	v := guest.Judge(want, p)
	switch {
	case v.Booted:
		l.Booted = factYes("")
	case v.Wrong != "":
		l.Booted = factNo(v.Wrong)
	case p.CloudInit.Known && p.Hostname.Known && p.Addresses.Known:
		l.Booted = factNo(v.Waiting)
	default:
		l.Booted = factUnknown(v.Waiting)
	}
	l.K3S = &homelabv1.K3SLook{
		Looked:       factYes(""),
		Version:      p.Version.Value,
		ServerActive: unitFact(p.ServerUnit),
		AgentActive:  unitFact(p.AgentUnit),
		ServerData:   readingFact(p.ServerData),
		AgentData:    readingFact(p.AgentData),
		ConfigYaml:   p.Config.Value,
	}
	if !p.Version.Known {
		l.K3S.Looked = factUnknown(p.Version.Reason)
	}
}

func unitFact(r k3s.Reading[string]) *homelabv1.Fact {
	switch {
	case !r.Known:
		return factUnknown(r.Reason)
	case r.Value == "active" || r.Value == "reloading":
		return factYes("")
	}
	return factNo(r.Value)
}

func readingFact(r k3s.Reading[bool]) *homelabv1.Fact {
	switch {
	case !r.Known:
		return factUnknown(r.Reason)
	case r.Value:
		return factYes("")
	}
	return factNo("")
}

func nodesView(r k3s.Reading[[]k3s.Node]) *homelabv1.NodesView {
	if !r.Known {
		return &homelabv1.NodesView{Known: factUnknown(r.Reason)}
	}
	v := &homelabv1.NodesView{Known: factYes("")}
	for _, n := range r.Value {
		v.Nodes = append(v.Nodes, &homelabv1.Node{
			Name: n.Name, Uid: n.UID, Ready: truthFact(n.Ready, n.ReadyReason), Version: n.Version,
			Server: n.Server, Address: n.InternalIP, EtcdName: n.EtcdName, Cordoned: n.Cordoned,
		})
	}
	return v
}

func truthFact(t k3s.Truth, reason string) *homelabv1.Fact {
	switch t {
	case k3s.True:
		return factYes("")
	case k3s.False:
		return factNo(reason)
	}
	return factUnknown(reason)
}
