package driver

import (
	"fmt"
	"log/slog"
	"os"
	"strings"

	plugin "github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/homeiac/homelab/internal/rpc"
)

// lifeline is the file descriptor of a pipe whose other end only the agent holds:
// it reads as ended when the agent is gone, however it went. go-plugin itself
// leaves a plugin running when its parent is killed.
const lifeline = 3

// lifelineVar tells a plugin that it has a lifeline.
const lifelineVar = "HOMELAB_DRIVER_LIFELINE"

// Serve serves d to the agent that started this process and does not return
// before the agent ends it. The process also exits when the agent is gone;
// programs that d started live on. Started by hand it explains itself and exits.
func Serve(d Driver) {
	if os.Getenv(lifelineVar) == "1" {
		// Not for the programs that the driver starts: they would outlive the
		// plugin with it open.
		unix.CloseOnExec(lifeline)
		go func() {
			end := os.NewFile(lifeline, "lifeline")
			_, _ = end.Read(make([]byte, 1))
			os.Exit(0)
		}()
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: handshake,
		Plugins:         plugin.PluginSet{pluginName: &grpcPlugin{driver: d}},
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return plugin.DefaultGRPCServer(append(opts, rpc.PlainAnswers()...))
		},
		Logger: hushed(),
	})
}

// PluginLog is the log of a plugin process: the lines on stderr are such that the
// agent logs them again as they are, with level and pairs. It must be made before
// Serve, which takes stderr over.
func PluginLog() *slog.Logger {
	return slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) > 0 {
				return a
			}
			switch a.Key {
			case slog.TimeKey:
				return slog.String("@timestamp", a.Value.Time().Format("2006-01-02T15:04:05.000000Z07:00"))
			case slog.LevelKey:
				return slog.String("@level", strings.ToLower(fmt.Sprint(a.Value)))
			case slog.MessageKey:
				return slog.String("@message", a.Value.String())
			}
			return a
		},
	}))
}
