package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/homeiac/homelab/agent/image"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// pullBytes is how much of a file one message holds.
const pullBytes = 256 << 10

// peerService gives image files to other agents.
type peerService struct {
	agentv1.UnimplementedPeerServiceServer
	service *Service
}

// Pull sends a file by its digest, as it comes.
func (p *peerService) Pull(req *agentv1.PullRequest, stream grpc.ServerStreamingServer[agentv1.PullResponse]) error {
	s := p.service
	if err := checkFields(req); err != nil {
		return err
	}
	ctx, leave := s.flights.unlessEnding(stream.Context())
	defer leave()
	want := image.Digests{SHA256: req.GetSha256(), SHA512: req.GetSha512()}
	file, err := s.images.Pass(want, req.GetOffset(), s.imageFolders(s.host.Observe(s.now())))
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Ready(ctx); err != nil {
		if s.flights.ends() {
			return rpc.Errorf(rpc.ErrUnavailable, "%w", errEnding) // whoever asked goes on with another host
		}
		return err
	}
	head := &agentv1.PullHead{Bytes: file.Bytes, Whole: file.Whole}
	if err := stream.Send(&agentv1.PullResponse{Part: &agentv1.PullResponse_Head{Head: head}}); err != nil {
		return err
	}
	for {
		buf := pieces.Get(pullBytes)
		n, err := file.Next(ctx, *buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if s.flights.ends() {
			return rpc.Errorf(rpc.ErrUnavailable, "%w", errEnding) // whoever asked goes on with another host
		}
		if err != nil {
			return err
		}
		*buf = (*buf)[:n]
		if err := stream.SendMsg(&piece{data: mem.NewBuffer(buf, pieces)}); err != nil {
			return err
		}
	}
}

// peers reach other agents.
type peers interface {
	// Pull gives an image file from a peer.
	Pull(ctx context.Context, peer *agentv1.ImagePeer, req *agentv1.PullRequest) (image.Pulled, error)
}

// peersOf are the peers of a step but for some.
func (s *Service) peersOf(all []*agentv1.ImagePeer, but map[string]bool) []image.Peer {
	var out []image.Peer
	for _, p := range all {
		if s.peers != nil && p.GetHost() != s.name && !but[p.GetHost()] {
			out = append(out, onePeer{p, s.peers})
		}
	}
	return out
}

type onePeer struct {
	peer  *agentv1.ImagePeer
	peers peers
}

func (p onePeer) Name() string { return p.peer.GetHost() }

func (p onePeer) Pull(ctx context.Context, want image.Digests, offset int64) (image.Pulled, error) {
	return p.peers.Pull(ctx, p.peer, &agentv1.PullRequest{Sha256: want.SHA256, Sha512: want.SHA512, Offset: offset})
}

// agents are the other agents of the fleet, over mutual TLS.
type agents struct {
	credentials *rpc.Credentials
	log         *slog.Logger
}

// Pull asks another agent; its connection is the pull's own.
func (a *agents) Pull(ctx context.Context, peer *agentv1.ImagePeer, req *agentv1.PullRequest) (image.Pulled, error) {
	conn, err := rpc.Dial(rpc.Target{
		Address: peer.GetAddress(), Role: rpc.RoleAgent, Name: peer.GetHost(), Credentials: a.credentials, Log: a.log,
	})
	if err != nil {
		return image.Pulled{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &pulled{close: func() error { cancel(); return conn.Close() }}
	p.stream, err = agentv1.NewPeerServiceClient(conn).Pull(ctx, req)
	if err != nil {
		_ = p.Close()
		return image.Pulled{}, err
	}
	first, err := p.stream.Recv()
	if err == nil && first.GetHead() == nil {
		err = rpc.Errorf(rpc.ErrUnavailable, "it does not begin with what it has")
	}
	if err != nil {
		_ = p.Close()
		return image.Pulled{}, err
	}
	return image.Pulled{ReadCloser: p, Bytes: first.GetHead().GetBytes(), Whole: first.GetHead().GetWhole()}, nil
}

// pulled reads the bytes of a pull.
type pulled struct {
	stream grpc.ServerStreamingClient[agentv1.PullResponse]
	piece  piece // what came last
	close  func() error
}

func (p *pulled) Read(b []byte) (int, error) {
	for p.piece.in == nil || p.piece.in.Remaining() == 0 {
		if err := p.stream.RecvMsg(&p.piece); err != nil {
			return 0, err
		}
	}
	return p.piece.in.Read(b) // what was read to its end is let go of
}

// Close ends the pull and its connection.
func (p *pulled) Close() error { return p.close() }
