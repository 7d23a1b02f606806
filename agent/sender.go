package agent

import (
	"io"
	"sync"

	"google.golang.org/grpc"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
)

// maxPiece bounds one message of output, in bytes.
const maxPiece = 64 << 10

// sender passes the output of a command on as it comes.
type sender struct {
	mu     sync.Mutex
	stream grpc.ServerStreamingServer[agentv1.ExecResponse]
}

func newSender(s grpc.ServerStreamingServer[agentv1.ExecResponse]) *sender { return &sender{stream: s} }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (s *sender) stdout() io.Writer {
	return s.pieces(func(p []byte) *agentv1.ExecResponse {
		return &agentv1.ExecResponse{Part: &agentv1.ExecResponse_Stdout{Stdout: p}}
	})
}

func (s *sender) stderr() io.Writer {
	return s.pieces(func(p []byte) *agentv1.ExecResponse {
		return &agentv1.ExecResponse{Part: &agentv1.ExecResponse_Stderr{Stderr: p}}
	})
}

func (s *sender) pieces(wrap func([]byte) *agentv1.ExecResponse) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		sent := 0
		for sent < len(p) {
			piece := p[sent:min(len(p), sent+maxPiece)]
			if err := s.stream.Send(wrap(piece)); err != nil {
				return sent, err
			}
			sent += len(piece)
		}
		return sent, nil
	})
}
