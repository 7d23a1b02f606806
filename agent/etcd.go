package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/homeiac/homelab/agent/guest"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
)

// etcdLimit bounds one question to etcd.
const etcdLimit = 3 * time.Second

// peerLimit bounds the question to another member, which may be switched off: one
// that takes longer than this on a LAN is not well.
const peerLimit = time.Second

// localEtcd is where a k3s server's etcd listens for clients in its guest.
const localEtcd = "127.0.0.1:2379"

// etcdMember is etcd as one k3s server has it, reached through SSH to that
// server with the certificates found there. The key stays in memory.
type etcdMember struct {
	client *clientv3.Client
	name   string // of this server's member, empty when it is not known
}

// openEtcd prepares a client; it connects with the first question. It needs
// SSH: the guest agent has no tunnel.
func openEtcd(ctx context.Context, sh *guest.Shell) (*etcdMember, error) {
	conn := sh.Conn()
	if conn == nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "etcd is asked through SSH only: %w", sh.SSHError())
	}
	res, err := sh.Run(ctx, k3s.EtcdFilesScript, nil)
	if err != nil {
		return nil, err
	}
	files, err := k3s.ParseEtcdFiles(res.Stdout)
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "%w", err)
	}
	pair, err := tls.X509KeyPair(files.Cert, []byte(files.Key.Reveal()))
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "etcd's client certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(files.CA) {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "etcd's CA file holds no certificate")
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + localEtcd},
		TLS:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{pair}},
		Logger:    zap.NewNop(),
		// Else it tries a member that is down a hundred times, until the deadline.
		MaxUnaryRetries: 1,
		DialOptions: []grpc.DialOption{grpc.WithNoProxy(), grpc.WithChainUnaryInterceptor(atOnce), grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return conn.DialContext(ctx, "tcp", address)
		})},
	})
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	return &etcdMember{client: client, name: files.Member}, nil
}

// atOnce has a question fail when its connection does. The client's own default is to
// dial anew until the deadline, and then to say that the time is over; a member whose
// port refuses does not run, which is known without waiting. What changes something
// keeps the default.
func atOnce(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	switch method {
	case etcdserverpb.Maintenance_Status_FullMethodName, etcdserverpb.Cluster_MemberList_FullMethodName:
		opts = append(opts, grpc.WaitForReady(false))
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

// dialCause is why a connection failed, without what gRPC says around it.
func dialCause(err error) error {
	_, cause, ok := strings.Cut(status.Convert(err).Message(), `"transport: `)
	if !ok {
		return err
	}
	cause = strings.TrimPrefix(cause, "Error while dialing: ")
	cause = strings.ReplaceAll(strings.TrimSuffix(cause, `"`), `\"`, `"`)
	return errors.New(cause[:min(len(cause), 200)]) // a guest says it, and may say more
}

func (m *etcdMember) close() { _ = m.client.Close() }

// self asks this server's own member whether it follows a leader and has a
// vote. A learner answers this although it refuses most else.
func (m *etcdMember) self(ctx context.Context) (voter bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, etcdLimit)
	defer cancel()
	st, err := m.client.Status(ctx, "https://"+localEtcd)
	if err != nil {
		return false, rpc.Errorf(rpc.ErrUnavailable, "etcd does not answer: %w", dialCause(err))
	}
	if st.Leader == 0 {
		return false, rpc.Errorf(rpc.ErrUnavailable, "etcd has no leader")
	}
	return !st.IsLearner, nil
}

// members lists the members; with a quorum only.
func (m *etcdMember) members(ctx context.Context) (*clientv3.MemberListResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, etcdLimit)
	defer cancel()
	list, err := m.client.MemberList(ctx)
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "etcd does not list its members: %w", dialCause(err))
	}
	return list, nil
}

// remembered lists the members as this server's own member has them. It needs no
// quorum, and they may be others by now: it is good for telling why there is none.
func (m *etcdMember) remembered(ctx context.Context) []*etcdserverpb.Member {
	ctx, cancel := context.WithTimeout(ctx, etcdLimit)
	defer cancel()
	list, err := m.client.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return nil
	}
	return list.Members
}

// pulse is what one member said of itself.
type pulse struct {
	healthy    *homelabv1.Fact
	answers    bool // also one that knows no leader
	leaderless bool
}

// ask asks one member at the addresses it tells to clients.
func (m *etcdMember) ask(ctx context.Context, member *etcdserverpb.Member) pulse {
	if len(member.ClientURLs) == 0 {
		return pulse{healthy: factNo("it has not started")}
	}
	ctx, cancel := context.WithTimeout(ctx, peerLimit)
	defer cancel()
	var last error
	for _, endpoint := range member.ClientURLs {
		st, err := m.client.Status(ctx, endpoint)
		switch {
		case err != nil:
			last = err
		case st.Leader == 0:
			return pulse{healthy: factNo("it knows no leader"), answers: true, leaderless: true}
		case len(st.Errors) > 0:
			return pulse{healthy: factNo(strings.Join(st.Errors, "; ")), answers: true}
		default:
			return pulse{healthy: factYes(""), answers: true}
		}
	}
	return pulse{healthy: factNo("it does not answer: " + dialCause(last).Error())}
}

// askAll asks members at once, by their ids.
func (m *etcdMember) askAll(ctx context.Context, members []*etcdserverpb.Member) map[uint64]pulse {
	pulses := make([]pulse, len(members))
	var asked sync.WaitGroup
	for i, member := range members {
		asked.Go(func() { pulses[i] = m.ask(ctx, member) })
	}
	asked.Wait()
	all := make(map[uint64]pulse, len(members))
	for i, member := range members {
		all[member.ID] = pulses[i]
	}
	return all
}

// quorumLost is the arithmetic of a quorum that is lost; empty when enough voters
// answer, or nobody knows who they are.
func quorumLost(members []*etcdserverpb.Member, pulses map[uint64]pulse) string {
	voters, answer := 0, 0
	for _, member := range members {
		if member.IsLearner {
			continue
		}
		voters++
		if pulses[member.ID].answers {
			answer++
		}
	}
	if needed := voters/2 + 1; voters > 0 && answer < needed {
		return fmt.Sprintf("no quorum: %d voters, %d answering, %d needed", voters, answer, needed)
	}
	return ""
}

// etcdView is etcd's membership as one server tells it. It never fails.
func etcdView(ctx context.Context, sh *guest.Shell) *homelabv1.EtcdView {
	m, err := openEtcd(ctx, sh)
	if err != nil {
		return &homelabv1.EtcdView{Known: factUnknown(err.Error())}
	}
	defer m.close()
	return m.view(ctx)
}

// view lists the members and asks each of them. It never fails. Without a quorum
// no list is to be had; that there is none is then told, and not only silence.
func (m *etcdMember) view(ctx context.Context) *homelabv1.EtcdView {
	var list *clientv3.MemberListResponse
	var err error
	var listed sync.WaitGroup
	listed.Go(func() { list, err = m.members(ctx) })
	known := m.remembered(ctx)
	pulses := m.askAll(ctx, known)
	listed.Wait()
	if err != nil {
		if why := quorumLost(known, pulses); why != "" {
			return &homelabv1.EtcdView{Known: factNo(why)}
		}
		return &homelabv1.EtcdView{Known: factUnknown(err.Error())}
	}
	var again []*etcdserverpb.Member
	for _, member := range list.Members {
		// That this server did not know yet; or that was asked in the middle of an election,
		// which is over: the list comes with a leader's word.
		if p, asked := pulses[member.ID]; !asked || p.leaderless {
			again = append(again, member)
		}
	}
	maps.Copy(pulses, m.askAll(ctx, again))
	v := &homelabv1.EtcdView{
		Known:  factYes(""),
		SelfId: fmt.Sprintf("%x", list.Header.GetMemberId()), ClusterId: fmt.Sprintf("%x", list.Header.GetClusterId()),
	}
	for _, member := range list.Members {
		v.Members = append(v.Members, &homelabv1.EtcdMember{
			Id: fmt.Sprintf("%x", member.ID), Name: member.Name, PeerUrls: member.PeerURLs, Learner: member.IsLearner,
			Healthy: pulses[member.ID].healthy,
		})
	}
	return v
}

// unfinished finds the learners with that peer address: what a join of the
// guest there left behind. The address alone names them, since one that never
// started has no name yet. A member with a vote is none, whatever its address.
func unfinished(members []*etcdserverpb.Member, address string) []*etcdserverpb.Member {
	var out []*etcdserverpb.Member
	for _, m := range members {
		there := slices.ContainsFunc(m.PeerURLs, func(raw string) bool {
			u, err := url.Parse(raw)
			return err == nil && u.Hostname() == address
		})
		if there && m.IsLearner {
			out = append(out, m)
		}
	}
	return out
}

// takeBack removes the learner of a join that did not end, through a healthy
// server. It gives the names of what it removed, none when there is nothing.
func takeBack(ctx context.Context, sh *guest.Shell, address string, e emit) ([]string, error) {
	m, err := openEtcd(ctx, sh)
	if err != nil {
		return nil, err
	}
	defer m.close()
	list, err := m.members(ctx)
	if err != nil {
		return nil, err
	}
	var removed []string
	for _, one := range unfinished(list.Members, address) {
		what := one.Name
		if what == "" {
			what = "unstarted member at " + address
		}
		err := e.call(callEtcd, []string{"remove-learner", what, fmt.Sprintf("%x", one.ID)}, func() (int, error) {
			rctx, cancel := context.WithTimeout(ctx, 2*etcdLimit)
			defer cancel()
			_, err := m.client.MemberRemove(rctx, one.ID)
			return 0, err
		})
		if err != nil {
			return removed, rpc.Errorf(rpc.ErrUnavailable, "etcd does not remove %s: %w", what, err)
		}
		removed = append(removed, what)
	}
	return removed, nil
}
