package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/homeiac/homelab/agent/guest"
	"github.com/homeiac/homelab/agent/image"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sh"
)

const (
	// maxScript bounds an install script, in bytes; the official one has 40 kB.
	maxScript = 1 << 20
	// worthTrying is the least time that a second attempt is begun with.
	worthTrying = 30 * time.Second
)

// reserve is kept of a join's time for hearing why it failed, and for the last
// looks after the install script.
func (j *joining) reserve() time.Duration { return min(10*time.Second, joinLimit(j.want)/5) }

// install writes what k3s needs and runs the install script. What an earlier
// attempt left is started again as it is; only when that fails, and it was a
// learner (taken back since) or says that the cluster has removed it, is it cleaned
// away once, with k3s's own script, and joined afresh. What was a whole member, or
// starts the cluster, is not: its data may be the cluster's only copy.
func (j *joining) install(ctx context.Context, p k3s.Probe) error {
	for attempt := 1; ; attempt++ {
		if err := j.writeFiles(ctx, p); err != nil {
			return err
		}
		failure, err := j.runInstall(ctx)
		if err == nil {
			return nil
		}
		spent := failure.Kind == k3s.FailureRemoved || j.learner && failure.Kind != ""
		if !spent || j.joined || j.init {
			return j.giveUp(ctx, err)
		}
		if cerr := j.clean(ctx, j.role); cerr != nil {
			return errors.Join(err, cerr)
		}
		if attempt > 1 || time.Until(j.until) < worthTrying {
			return err
		}
	}
}

// writeFiles puts everything in place before the script runs, so that nothing
// but the role is on its command line.
func (j *joining) writeFiles(ctx context.Context, p k3s.Probe) error {
	config, err := j.config(p)
	if err != nil {
		return err
	}
	script, err := j.script(ctx)
	if err != nil {
		return err
	}
	token, err := j.tokenText(ctx)
	if err != nil {
		return err
	}
	j.e.progress("joining", "writing k3s's configuration")
	if !j.began {
		if err := j.leaveWord(ctx, ""); err != nil {
			return err
		}
	}
	if err := j.held(ctx, "binary", j.k3s.GetBinary(), k3s.BinaryPath, 0o755); err != nil {
		return err
	}
	images := j.k3s.GetImages()
	if err := j.held(ctx, "images", images, path.Join(k3s.ImagesDir, path.Base(images)), 0o644); err != nil {
		return err
	}
	if err := j.write(ctx, "config", k3s.ConfigPath, 0o600, bytes.NewReader(config)); err != nil {
		return err
	}
	if !token.IsZero() {
		if err := j.write(ctx, "token", k3s.TokenPath, 0o600, strings.NewReader(token.Reveal()+"\n")); err != nil {
			return err
		}
	}
	return j.write(ctx, "script", k3s.ScriptPath, 0o700, bytes.NewReader(script))
}

// leaveWord writes ownPath.
func (j *joining) leaveWord(ctx context.Context, more string) error {
	return j.write(ctx, "config", ownPath, 0o600, strings.NewReader(j.own()+more+"\n"))
}

// write puts content into a file of the guest, through standard input.
func (j *joining) write(ctx context.Context, verb, file string, mode uint32, content io.Reader) error {
	return j.e.call(callGuest, []string{verb, file}, func() (int, error) {
		if j.sh.Conn() == nil {
			return j.writePieces(ctx, file, mode, content)
		}
		return j.feed(ctx, file, k3s.WriteFileScript(file, mode), content)
	})
}

// feed runs a script that writes its standard input into a file.
func (j *joining) feed(ctx context.Context, file, script string, content io.Reader) (exit int, err error) {
	res, err := j.sh.Run(ctx, script, content)
	if err != nil {
		return 0, err
	}
	if err := res.Check("write " + file); err != nil {
		return res.Exit, rpc.Errorf(rpc.ErrUnavailable, "%w", err)
	}
	return 0, nil
}

// agentPiece is how much is sent through the guest agent at once, in bytes.
const agentPiece = 768 << 10

// writePieces writes a file of any size through the guest agent, which takes a
// megabyte at once.
func (j *joining) writePieces(ctx context.Context, file string, mode uint32, content io.Reader) (exit int, err error) {
	piece := make([]byte, agentPiece)
	for first := true; ; first = false {
		n, err := io.ReadFull(content, piece)
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		switch {
		case err != nil && !last:
			return 0, err
		case first && last:
			return j.feed(ctx, file, k3s.WriteFileScript(file, mode), bytes.NewReader(piece[:n]))
		}
		if n > 0 {
			if exit, err := j.feed(ctx, file, k3s.WritePieceScript(file, first), bytes.NewReader(piece[:n])); err != nil {
				return exit, err
			}
		}
		if last {
			return j.feed(ctx, file, k3s.PlaceFileScript(file, mode), nil)
		}
	}
}

// held puts a file that this agent holds into the guest.
func (j *joining) held(ctx context.Context, verb, from, to string, mode uint32) error {
	if from == "" {
		return nil
	}
	f, _, err := j.s.images.Open(ctx, from)
	if err != nil {
		return fmt.Errorf("k3s %s: %w", verb, err)
	}
	defer f.Close()
	j.e.progress("joining", "copying "+path.Base(from)+" into the guest")
	return j.write(ctx, verb, to, mode, f)
}

// script is the install script. The agent fetches it, not the guest: so it is
// the same whichever way the guest is out, and looked at before it is run.
func (j *joining) script(ctx context.Context) ([]byte, error) {
	from := j.k3s.GetScript()
	if from == "" {
		return nil, rpc.Errorf(rpc.ErrInvalid, "k3s.source names no install script")
	}
	f, _, err := j.s.images.Open(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("k3s install script: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxScript+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("k3s install script: %w", err)
	case len(text) > maxScript:
		return nil, rpc.Errorf(rpc.ErrRefused, "k3s install script: it is larger than %d bytes", maxScript)
	case !bytes.HasPrefix(text, []byte("#!")):
		return nil, rpc.Errorf(rpc.ErrRefused, "k3s install script: what came from %s is no script", image.Masked(from))
	}
	return text, nil
}

// tokenText is what goes into the token file. A cluster is started with a
// password of our making, once: k3s encrypts its first data with it. Empty
// leaves the file as it is.
func (j *joining) tokenText(ctx context.Context) (k3s.Secret, error) {
	if !j.init {
		return j.token, nil
	}
	res, err := j.sh.Run(ctx, "test -s "+k3s.TokenPath, nil)
	switch {
	case err != nil:
		return k3s.Secret{}, err
	case res.Exit == 0:
		return k3s.Secret{}, nil
	case res.Exit == 1:
		return k3s.NewSecret(rand.Text()), nil
	}
	return k3s.Secret{}, rpc.Errorf(rpc.ErrUnavailable, "%w", res.Check("look for "+k3s.TokenPath))
}

// runInstall runs the script under its own deadline, and says what is waited
// for meanwhile: the script comes back only when k3s is ready.
func (j *joining) runInstall(ctx context.Context) (k3s.Failure, error) {
	version, err := k3s.ParseVersion(j.k3s.GetVersion())
	if err != nil {
		return k3s.Failure{}, rpc.Errorf(rpc.ErrInvalid, "%w", err)
	}
	limit := time.Until(j.until) - j.reserve()
	if limit < time.Second {
		return k3s.Failure{}, rpc.Errorf(rpc.ErrUnavailable, "timeouts.join is over")
	}
	script := k3s.InstallScript(k3s.Install{Role: j.role, Version: version, Timeout: limit, Airgap: j.k3s.GetBinary() != ""})
	var in k3s.Installed
	err = j.e.call(callGuest, []string{"install", string(j.role), version.String()}, func() (int, error) {
		res, err := j.narrated(ctx, limit, script)
		in = k3s.ParseInstall(res.Stdout)
		return max(in.Exit, 0), err
	})
	if err != nil {
		return k3s.Failure{}, err
	}
	if in.Exit == 0 && in.Active {
		return k3s.Failure{}, nil
	}
	why := k3s.Classify(in.Output+"\n"+in.Journal, k3s.Where{Guest: j.want.GetIdentity().GetGuest(), Node: j.want.GetNodeName()})
	text := fmt.Sprintf("the install script ended with exit %d, the unit %s is %s", in.Exit, j.role.Unit(), in.Unit)
	if in.TimedOut {
		text = fmt.Sprintf("k3s was not ready within %s", limit.Round(time.Second))
	} else if in.Exit < 0 {
		text = in.Reason
	}
	return why, rpc.Errorf(rpc.ErrUnavailable, "%s: %s", text, why.Error())
}

func (j *joining) narrated(ctx context.Context, limit time.Duration, script string) (guest.Result, error) {
	type outcome struct {
		res guest.Result
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var out outcome
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		out.res, out.err = j.sh.Run(ctx, script, nil)
	}()
	err := j.e.wait(ctx, waiting{
		phase: "joining", limit: limit + j.reserve()/2, wake: ended,
		look: func(ctx context.Context) (bool, string, error) {
			select {
			case <-ended:
				return true, "", out.err
			default:
				return false, j.stage(ctx), nil
			}
		},
		overdue: func(text string) error {
			return rpc.Errorf(rpc.ErrUnavailable, "the install script did not come back: %s", text)
		},
	})
	cancel()
	<-ended
	return out.res, err
}

// stage is what k3s does while its install script runs.
func (j *joining) stage(ctx context.Context) string {
	text := "k3s is being installed and started"
	if j.role != k3s.Server || j.sh.Conn() == nil {
		return text
	}
	m, err := openEtcd(ctx, j.sh)
	if err != nil {
		return text
	}
	defer m.close()
	switch voter, err := m.self(ctx); {
	case err != nil:
		return text
	case voter:
		return "waiting for the k3s API"
	}
	return "waiting to be promoted from learner"
}

// nodesScript lists the Nodes: all of them on a server; on an agent only its
// own, which is all that the kubelet's certificate may see.
func (j *joining) nodesScript() string {
	const list = "export LC_ALL=C PATH=/usr/local/bin:/usr/bin:/bin:/opt/bin\ntimeout -k 1 5 k3s kubectl get nodes -o json --request-timeout=4s"
	if j.role == k3s.Server {
		return list
	}
	return list + " --kubeconfig=/var/lib/rancher/k3s/agent/kubelet.kubeconfig --field-selector=metadata.name=" + sh.Quote(j.want.GetNodeName())
}

// member says what is missing to a good member, "" for nothing. An error of
// kind Unavailable is a look that did not succeed.
func (j *joining) member(ctx context.Context) (missing string, err error) {
	res, err := j.sh.Run(ctx, j.nodesScript(), nil)
	if err != nil {
		return "", err
	}
	if res.Exit != 0 {
		return "the k3s API does not answer yet: " + guest.Tail(res.Stderr, 1), nil
	}
	nodes, err := k3s.ParseNodes(res.Stdout)
	if err != nil {
		return "the k3s API does not answer yet: " + err.Error(), nil
	}
	missing = "its Node is not registered yet"
	for _, n := range nodes {
		switch {
		case n.Name != j.want.GetNodeName():
			continue
		case n.Ready != k3s.True:
			missing = "its Node is not Ready: " + n.ReadyReason
		case j.k3s.GetVersion() != "" && n.Version != j.k3s.GetVersion():
			return "", rpc.Errorf(rpc.ErrRefused, "it runs k3s %s and should run %s", n.Version, j.k3s.GetVersion())
		default:
			missing = ""
		}
	}
	if missing != "" || j.role != k3s.Server {
		return missing, nil
	}
	if j.sh.Conn() == nil {
		return "", rpc.Errorf(rpc.ErrUnavailable, "whether its etcd member has a vote is seen through SSH only: %w", j.sh.SSHError())
	}
	m, err := openEtcd(ctx, j.sh)
	if err != nil {
		return err.Error(), nil
	}
	defer m.close()
	voter, err := m.self(ctx)
	switch {
	case err != nil:
		return err.Error(), nil
	case !voter:
		return "waiting to be promoted from learner", nil
	}
	return "", nil
}

func (j *joining) awaitMember(ctx context.Context, limit time.Duration) error {
	return j.e.wait(ctx, waiting{
		phase: "joining", limit: limit,
		look: func(ctx context.Context) (bool, string, error) {
			missing, err := j.member(ctx)
			return err == nil && missing == "", missing, err
		},
		overdue: func(text string) error {
			return rpc.Errorf(rpc.ErrUnavailable, "no member within %s: %s", limit.Round(time.Second), text)
		},
	})
}

// giveUp stops the unit of a join that failed and gives the failure, with what
// the unit said last. A server that has a vote already is left running: stopping
// it would cost the cluster a voter. When the agent itself is ending, nothing is
// stopped either: the next run finds the join where it is.
func (j *joining) giveUp(ctx context.Context, cause error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return cause
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), slack)
	defer cancel()
	// The failure may have cost us the connection.
	if sh, err := j.s.open(ctx, j.want); err == nil {
		_ = j.sh.Close()
		j.sh = sh
	}
	voter, known := j.votes(ctx)
	if voter {
		return fmt.Errorf("%w; its etcd member has a vote, so k3s is left running", cause)
	}
	var stopped k3s.Stopped
	err := j.e.call(callGuest, []string{"stop", j.role.Unit()}, func() (int, error) {
		res, err := j.sh.Run(ctx, k3s.StopScript(j.role), nil)
		stopped = k3s.ParseStopped(res.Stdout, false)
		return res.Exit, err
	})
	switch {
	case err != nil:
		return fmt.Errorf("%w; its unit could not be stopped: %w", cause, err)
	case !stopped.Stopped:
		return fmt.Errorf("%w; its unit did not stop: %s", cause, stopped.Reason)
	}
	if known && !j.joined {
		// A learner for certain: its data is of no use once it is taken back.
		if err := j.leaveWord(ctx, asLearner); err != nil {
			return fmt.Errorf("%w; its unit was stopped; %w", cause, err)
		}
	}
	return fmt.Errorf("%w; its unit was stopped", cause)
}

// votes asks a server's own etcd member; known is false when it does not answer.
func (j *joining) votes(ctx context.Context) (voter, known bool) {
	if j.role != k3s.Server || j.sh.Conn() == nil {
		return false, false
	}
	m, err := openEtcd(ctx, j.sh)
	if err != nil {
		return false, false
	}
	defer m.close()
	// It may be starting anew at this moment, and a voter must not be stopped.
	ctx, cancel := context.WithTimeout(ctx, etcdLimit)
	defer cancel()
	for {
		voter, err = m.self(ctx)
		if err == nil || !pause.For(ctx, firstPoll) {
			return voter, err == nil
		}
	}
}

// clean removes what is left of a member that the cluster has removed, or of an
// older k3s that holds nothing to lose. The Node's password stays: the cluster may
// remember it, and would refuse another one.
func (j *joining) clean(ctx context.Context, role k3s.Role) error {
	j.e.progress("joining", "removing what an earlier attempt left")
	return j.e.call(callGuest, []string{"clean", role.Unit()}, func() (int, error) {
		res, err := j.sh.Run(ctx, k3s.CleanScript(role), nil)
		if err != nil {
			return 0, err
		}
		if c := k3s.ParseStopped(res.Stdout, true); !c.Cleaned {
			return res.Exit, rpc.Errorf(rpc.ErrUnavailable, "k3s could not be removed: %s", c.Reason)
		}
		j.began, j.learner = false, false
		return 0, nil
	})
}

// takeBackLearner removes, through a healthy server on this host, the learner
// that a join of another guest left behind.
func (s *Service) takeBackLearner(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	u, err := url.Parse(req.GetK3S().GetServerUrl())
	if err != nil || u.Hostname() == "" {
		return nil, rpc.Errorf(rpc.ErrInvalid, "step %s names no address of the guest whose join is taken back", req.GetStep().GetId())
	}
	sh, err := s.open(ctx, req.GetWant())
	if err != nil {
		return nil, err
	}
	defer sh.Close()
	removed, err := takeBack(ctx, sh, u.Hostname(), e)
	if err != nil {
		return nil, err
	}
	if len(removed) == 0 {
		return done(false, "no learner of %s is there", req.GetStep().GetGuest()), nil
	}
	return done(true, "removed learner %s", strings.Join(removed, ", ")), nil
}
