package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

const (
	// agentTimeout bounds a question to the SSH agent, which may ask its owner.
	agentTimeout = 30 * time.Second
	// attempts is how often a person may mistype.
	attempts = 3
)

// proofs are the ways in which we can show who we are, and what is told of them when
// none was good enough.
type proofs struct {
	signers []ssh.Signer
	told    []string
	agent   net.Conn
}

func (all *proofs) close() {
	if all.agent != nil {
		_ = all.agent.Close()
	}
}

func (all *proofs) tell(format string, args ...any) {
	all.told = append(all.told, fmt.Sprintf(format, args...))
}

// gather finds the keys: those of the files that are named, through the SSH agent
// where it holds them, then the agent's others. sshd counts each as an attempt, and
// hangs up after six.
func gather(ctx context.Context, p place, ask func(string) (string, error)) (*proofs, error) {
	all := &proofs{}
	held := all.fromAgent(ctx, p.agent)
	taken := make(map[string]bool)
	for _, file := range p.identities {
		signer, public, err := fromFile(file, ask)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !p.chosen:
			continue
		case err != nil && p.chosen:
			all.close()
			return nil, fmt.Errorf("the key %s: %w", file, err)
		case err != nil:
			all.tell("%s: %v", file, err)
		}
		if public != nil {
			blob := string(public.Marshal())
			if taken[blob] {
				continue
			}
			if inAgent := held[blob]; inAgent != nil {
				signer = inAgent
			}
			taken[blob] = true
		}
		if signer != nil {
			all.signers = append(all.signers, signer)
			all.tell("%s", file)
		}
	}
	if !p.only {
		more := 0
		for blob, signer := range held {
			if !taken[blob] {
				all.signers = append(all.signers, signer)
				more++
			}
		}
		if more > 0 {
			all.tell("%d of the SSH agent", more)
		}
	}
	return all, nil
}

// fromAgent gives the agent's keys by their public halves.
func (all *proofs) fromAgent(ctx context.Context, socket string) map[string]ssh.Signer {
	if socket == "" {
		return nil
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		all.tell("no SSH agent answers at %s", socket)
		return nil
	}
	all.agent = conn
	_ = conn.SetDeadline(time.Now().Add(agentTimeout))
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		all.tell("the SSH agent: %v", err)
		return nil
	}
	held := make(map[string]ssh.Signer, len(signers))
	for _, s := range signers {
		held[string(s.PublicKey().Marshal())] = s
	}
	return held
}

// fromFile reads a private key. One with a passphrase is opened when it is used, if
// there is somebody to ask; its public half may be beside it.
func fromFile(file string, ask func(string) (string, error)) (ssh.Signer, ssh.PublicKey, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		// As with a key on a token: only the agent has the private half.
		if public := publicBeside(file); public != nil {
			return nil, public, nil
		}
	}
	if err != nil {
		return nil, nil, err
	}
	signer, err := ssh.ParsePrivateKey(data)
	var sealed *ssh.PassphraseMissingError
	switch {
	case err == nil:
		return signer, signer.PublicKey(), nil
	case !errors.As(err, &sealed):
		if public, _, _, _, perr := ssh.ParseAuthorizedKey(data); perr == nil {
			return nil, public, nil
		}
		return nil, nil, err
	}
	public := sealed.PublicKey
	if public == nil {
		public = publicBeside(file)
	}
	if public == nil || ask == nil {
		return nil, public, errors.New("it has a passphrase, and there is no terminal to ask for it: ssh-add it")
	}
	return &sealedKey{file: file, data: data, public: public, ask: ask}, public, nil
}

func publicBeside(file string) ssh.PublicKey {
	data, err := os.ReadFile(file + ".pub")
	if err != nil {
		return nil
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		return nil
	}
	return key
}

// sealedKey asks for its passphrase when the host has said that it would take the key.
type sealedKey struct {
	file   string
	data   []byte
	public ssh.PublicKey
	ask    func(string) (string, error)

	mu   sync.Mutex
	open ssh.AlgorithmSigner
}

func (k *sealedKey) PublicKey() ssh.PublicKey { return k.public }

func (k *sealedKey) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	return k.SignWithAlgorithm(rand, data, "")
}

func (k *sealedKey) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for n := 0; k.open == nil; n++ {
		text, err := k.ask("Passphrase of " + k.file + ": ")
		if err != nil {
			return nil, err
		}
		signer, err := ssh.ParsePrivateKeyWithPassphrase(k.data, []byte(text))
		if err != nil && n+1 < attempts {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("the key %s: %w", k.file, err)
		}
		open, ok := signer.(ssh.AlgorithmSigner)
		if !ok {
			return nil, fmt.Errorf("the key %s is of a kind that cannot be used", k.file)
		}
		k.open = open
	}
	return k.open.SignWithAlgorithm(rand, data, algorithm)
}

// methods are the ways to log in, in order. A password is asked for when no key was
// good, and only where there is somebody to ask.
func (all *proofs) methods(whom string, ask func(string) (string, error)) []ssh.AuthMethod {
	var list []ssh.AuthMethod
	if len(all.signers) > 0 {
		list = append(list, ssh.PublicKeys(all.signers...))
	}
	if ask == nil {
		return list
	}
	password := func() (string, error) { return ask("Password of " + whom + ": ") }
	questions := func(_, _ string, questions []string, echos []bool) ([]string, error) {
		answers := make([]string, len(questions))
		for i, q := range questions {
			var err error
			if answers[i], err = ask(whom + ": " + strings.TrimSpace(q) + " "); err != nil {
				return nil, err
			}
		}
		return answers, nil
	}
	return append(list, ssh.RetryableAuthMethod(ssh.PasswordCallback(password), attempts),
		ssh.RetryableAuthMethod(ssh.KeyboardInteractive(questions), attempts))
}
