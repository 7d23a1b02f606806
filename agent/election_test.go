package agent

import (
	"context"
	"net"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// electing is an etcd in the middle of an election, which ends when it was asked for its
// status.
type electing struct {
	etcdserverpb.UnimplementedMaintenanceServer
	etcdserverpb.UnimplementedClusterServer
	members []*etcdserverpb.Member
	once    sync.Once
	asked   chan struct{} // closed with the first question

	mu     sync.Mutex
	leader uint64
}

func (e *electing) Status(context.Context, *etcdserverpb.StatusRequest) (*etcdserverpb.StatusResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.once.Do(func() { close(e.asked) })
	return &etcdserverpb.StatusResponse{Header: new(etcdserverpb.ResponseHeader), Leader: e.leader}, nil
}

func (e *electing) MemberList(ctx context.Context, req *etcdserverpb.MemberListRequest) (*etcdserverpb.MemberListResponse, error) {
	if req.GetLinearizable() {
		select {
		case <-e.asked:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.leader = 1
	}
	return &etcdserverpb.MemberListResponse{Header: new(etcdserverpb.ResponseHeader), Members: e.members}, nil
}

func TestAMemberThatWasAskedInTheMiddleOfAnElectionIsWell(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := "http://" + listener.Addr().String()
	e := &electing{asked: make(chan struct{}), members: []*etcdserverpb.Member{{ID: 1, Name: "k3s-1", ClientURLs: []string{at}}}}
	s := grpc.NewServer()
	etcdserverpb.RegisterMaintenanceServer(s, e)
	etcdserverpb.RegisterClusterServer(s, e)
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(listener) })
	defer serving.Wait()
	defer s.Stop()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{at}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	m := &etcdMember{client: client}
	defer m.close()
	v := m.view(t.Context())
	if !isYes(v.GetKnown()) || len(v.GetMembers()) != 1 || !isYes(v.GetMembers()[0].GetHealthy()) {
		t.Errorf("%v", v)
	}
}
