// Package rpctest calls a server of the fleet as everybody who may not, and with what
// nobody should send. What the calls mean it leaves to others.
package rpctest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/homeiac/homelab/internal/rpc"
)

// limit bounds one call: a server that does not answer must not hold up the tests.
const limit = 10 * time.Second

// Server is what is called: where it listens, as whom, whose it is, and what it serves.
type Server struct {
	Address string
	Role    string // of its certificate
	// CA is the fleet's certificate and its key, that others are forged with.
	CA       tls.Certificate
	Fleet    string
	Services []string // full names
	// Revoke has the server go by a list with that certificate on it.
	Revoke func(serial string)
}

// methods are the server's methods by their full names.
func (s Server) methods(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, service := range s.Services {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			names = append(names, "/"+service+"/"+string(methods.Get(i).Name()))
		}
	}
	if len(names) == 0 {
		t.Fatal("the server has no methods")
	}
	return names
}

// raw is a codec that sends bytes as they are.
type raw struct{}

func (raw) Name() string                       { return "proto" }
func (raw) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }

// call makes one call with one message, whatever the method's kind, and gives the code
// and text of its end.
func (s Server) call(t *testing.T, creds credentials.TransportCredentials, method string, message []byte) *status.Status {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+s.Address, grpc.WithTransportCredentials(creds), grpc.WithNoProxy(), grpc.WithDisableRetry())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return send(t, conn, method, message)
}

func send(t *testing.T, conn *grpc.ClientConn, method string, message []byte) *status.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method,
		grpc.ForceCodec(raw{}), grpc.MaxCallSendMsgSize(1<<30))
	if err != nil {
		return status.Convert(err)
	}
	if err := stream.SendMsg(&message); err == nil {
		_ = stream.CloseSend()
	}
	for {
		var answer []byte
		if err := stream.RecvMsg(&answer); err != nil {
			return status.Convert(err)
		}
		if len(answer) > 0 {
			return status.New(codes.OK, "it was answered")
		}
	}
}

// TurnedAway calls every method as everybody who may not: without a certificate, with
// one that has ended or was taken back, of another CA or fleet, forged, and in every role that has no
// right to it. Each must be turned away before a message is read.
func (s Server) TurnedAway(t *testing.T) {
	t.Helper()
	ours := x509.NewCertPool()
	ours.AddCert(s.CA.Leaf)
	config := func(certs ...tls.Certificate) credentials.TransportCredentials {
		return credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS12, RootCAs: ours, Certificates: certs, ServerName: s.Role + ".homelab.internal",
		})
	}
	other := authority(t, "another CA")
	admin := s.person(rpc.RoleAdmin)
	agent := s.certificate(t, s.CA, s.person(rpc.RoleAgent))
	strangers := map[string]credentials.TransportCredentials{
		"without TLS":           insecure.NewCredentials(),
		"without a certificate": config(),
		"of another CA":         config(s.certificate(t, other, admin)),
		"signed by an agent":    config(s.certificate(t, agent, admin)),
		"expired":               config(s.certificate(t, s.CA, admin, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) })),
		"not valid yet":         config(s.certificate(t, s.CA, admin, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })),
		"of another fleet":      config(s.certificate(t, s.CA, rpc.Identity{Fleet: "elsewhere", Role: rpc.RoleAdmin, Name: "x"})),
		"of an unknown role":    config(s.certificate(t, s.CA, rpc.Identity{Fleet: s.Fleet, Role: "root", Name: "x"})),
		"of two people": config(s.certificate(t, s.CA, admin, func(c *x509.Certificate) {
			c.URIs = append(c.URIs, s.person(rpc.RoleController).URI())
		})),
		"of nobody":    config(s.certificate(t, s.CA, admin, func(c *x509.Certificate) { c.URIs = nil })),
		"for a server": config(s.certificate(t, s.CA, admin, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })),
		"with the older TLS": credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, RootCAs: ours,
			Certificates: []tls.Certificate{s.certificate(t, s.CA, admin)}, ServerName: s.Role + ".homelab.internal",
		}),
	}
	back := s.certificate(t, s.CA, admin)
	s.Revoke(rpc.Serial(back.Leaf))
	strangers["taken back"] = config(back)
	below := sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "an issuing CA", Organization: []string{s.Fleet}}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}, &s.CA)
	s.Revoke(rpc.Serial(below.Leaf))
	strangers["of a CA that was taken back"] = config(s.certificate(t, below, admin))
	methods := s.methods(t)
	for who, creds := range strangers {
		for _, method := range methods {
			if end := s.call(t, creds, method, nil); end.Code() != codes.Unavailable {
				t.Errorf("%s: %s ended with %s: %s", who, method, end.Code(), end.Message())
			}
		}
	}
	// What is too large for anybody must not even be read from somebody who may not call.
	garbage := []byte{0xff, 0xff, 0xff}
	for _, role := range []string{rpc.RoleAdmin, rpc.RoleViewer, rpc.RoleAgent, rpc.RoleController} {
		creds := config(s.certificate(t, s.CA, s.person(role)))
		for _, method := range append([]string{"/" + s.Services[0] + "/NoSuchMethod", "/no.such.Service/Run"}, methods...) {
			if slices.Contains(rpc.Rules[method].Roles, role) {
				continue
			}
			for _, message := range [][]byte{nil, garbage} {
				if end := s.call(t, creds, method, message); end.Code() != codes.PermissionDenied {
					t.Errorf("%s: %s ended with %s: %s", role, method, end.Code(), end.Message())
				}
			}
		}
	}
}

// Elsewhere calls the methods of all other services of the fleet at this address, as
// everybody who may call them where they are. None of them may be there.
func (s Server) Elsewhere(t *testing.T) {
	t.Helper()
	ours := x509.NewCertPool()
	ours.AddCert(s.CA.Leaf)
	for method, rule := range rpc.Rules {
		for _, role := range rule.Roles {
			creds := credentials.NewTLS(&tls.Config{
				MinVersion: tls.VersionTLS13, RootCAs: ours, ServerName: s.Role + ".homelab.internal",
				Certificates: []tls.Certificate{s.certificate(t, s.CA, s.person(role))},
			})
			if end := s.call(t, creds, method, nil); end.Code() != codes.Unimplemented {
				t.Errorf("%s: %s ended with %s: %s", role, method, end.Code(), end.Message())
			}
		}
	}
}

// NotRenewed calls a method that takes a certificate which has ended, as those who must
// not get another one all the same.
func (s Server) NotRenewed(t *testing.T, method string) {
	t.Helper()
	agent, now := s.person(rpc.RoleAgent), time.Now()
	ended := func(at time.Time) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = at.Add(-time.Hour), at }
	}
	back := s.certificate(t, s.CA, agent)
	ended1 := s.certificate(t, s.CA, agent, ended(now.Add(-time.Hour)))
	for _, c := range []tls.Certificate{back, ended1} {
		s.Revoke(rpc.Serial(c.Leaf))
	}
	strangers := map[string][]tls.Certificate{
		"without a certificate":        nil,
		"of another CA":                {s.certificate(t, authority(t, "another CA"), agent)},
		"signed by an agent":           {s.certificate(t, s.certificate(t, s.CA, agent), agent)},
		"ended more than a year ago":   {s.certificate(t, s.CA, agent, ended(now.Add(-366*24*time.Hour)))},
		"not valid yet":                {s.certificate(t, s.CA, agent, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) })},
		"taken back":                   {back},
		"ended and taken back":         {ended1},
		"of another fleet":             {s.certificate(t, s.CA, rpc.Identity{Fleet: "elsewhere", Role: rpc.RoleAgent, Name: "x"})},
		"of an unknown role":           {s.certificate(t, s.CA, rpc.Identity{Fleet: s.Fleet, Role: "root", Name: "x"})},
		"of two":                       {s.certificate(t, s.CA, agent, func(c *x509.Certificate) { c.URIs = append(c.URIs, s.person(rpc.RoleController).URI()) })},
		"of nobody":                    {s.certificate(t, s.CA, agent, func(c *x509.Certificate) { c.URIs = nil })},
		"for a server":                 {s.certificate(t, s.CA, agent, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })},
		"of a CA that poses as a host": {s.certificate(t, s.CA, agent, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })},
		"an admin":                     {s.certificate(t, s.CA, s.person(rpc.RoleAdmin))},
		"a viewer":                     {s.certificate(t, s.CA, s.person(rpc.RoleViewer))},
	}
	for who, certs := range strangers {
		creds := credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: certs, //nolint:gosec // the server is not what is tried
		})
		if end := s.call(t, creds, method, nil); end.Code() != codes.PermissionDenied {
			t.Errorf("%s: %s ended with %s: %s", who, method, end.Code(), end.Message())
		}
	}
}

// Unharmed sends what cannot be read, and what is larger than any message, to every
// method as somebody who may call it. Each must be refused, and none harm the server.
func (s Server) Unharmed(t *testing.T) {
	t.Helper()
	ours := x509.NewCertPool()
	ours.AddCert(s.CA.Leaf)
	huge := make([]byte, 64<<20+1)
	var noise [4096]byte
	_, _ = rand.Read(noise[:])
	noise[0] = 0xff // never a field's number
	for _, method := range s.methods(t) {
		roles := rpc.Rules[method].Roles
		if len(roles) == 0 {
			continue
		}
		conn, err := grpc.NewClient("passthrough:///"+s.Address, grpc.WithNoProxy(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: ours, ServerName: s.Role + ".homelab.internal",
			Certificates: []tls.Certificate{s.certificate(t, s.CA, s.person(roles[0]))},
		})))
		if err != nil {
			t.Fatal(err)
		}
		for what, message := range map[string][]byte{
			"noise": noise[:], "a length without an end": {0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}, "a group without an end": {0x0b},
		} {
			if end := send(t, conn, method, message); end.Code() == codes.OK || end.Code() == codes.Unavailable || end.Code() == codes.DeadlineExceeded {
				t.Errorf("%s: %s ended with %s: %s", what, method, end.Code(), end.Message())
			}
		}
		if end := send(t, conn, method, huge); end.Code() != codes.ResourceExhausted {
			t.Errorf("a huge message: %s ended with %s: %s", method, end.Code(), end.Message())
		}
		_ = conn.Close()
	}
}

func (s Server) person(role string) rpc.Identity {
	return rpc.Identity{Fleet: s.Fleet, Role: role, Name: "stranger"}
}

// certificate is one that issuer signs, right in everything but for what change makes
// of it.
func (s Server) certificate(t *testing.T, issuer tls.Certificate, id rpc.Identity, change ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: id.Name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs: []*url.URL{id.URI()}, DNSNames: []string{id.Role + ".homelab.internal"},
	}
	for _, c := range change {
		c(template)
	}
	return sign(t, template, &issuer)
}

func authority(t *testing.T, name string) tls.Certificate {
	t.Helper()
	return sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}, nil)
}

func sign(t *testing.T, template *x509.Certificate, issuer *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // as ours have it
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial
	parent, signer := template, any(key)
	chain := [][]byte{}
	if issuer != nil {
		parent, signer, chain = issuer.Leaf, issuer.PrivateKey, issuer.Certificate
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: append([][]byte{der}, chain...), PrivateKey: key, Leaf: leaf}
}

// LoadCA reads a CA's certificate and key for Server.
func LoadCA(t *testing.T, certFile, keyFile string) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}
