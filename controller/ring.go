package controller

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	// ringTimeout is how long each change of the ring waits for those that are alive.
	ringTimeout = 5 * time.Second
	// maxRing bounds the keys of a ring: of rotations that were cut off.
	maxRing = 4
)

// seal encrypts what the store keeps, with a key that every controller derives from the
// fleet's for that purpose: the store alone must let nobody in.
func seal(fleet mark.Key, purpose string, plain []byte) ([]byte, error) {
	aead, err := sealer(fleet, purpose)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize())
	_, _ = rand.Read(nonce) // does not fail since Go 1.24
	return aead.Seal(nonce, nonce, plain, nil), nil
}

func unseal(fleet mark.Key, purpose string, sealed []byte) ([]byte, error) {
	aead, err := sealer(fleet, purpose)
	if err != nil {
		return nil, err
	}
	if len(sealed) < aead.NonceSize() {
		return nil, rpc.Errorf(rpc.ErrInvalid, "%s in the store: cut short", purpose)
	}
	plain, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], nil)
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "%s in the store: not sealed with this fleet's key", purpose)
	}
	return plain, nil
}

func sealer(fleet mark.Key, purpose string) (cipher.AEAD, error) {
	block, err := aes.NewCipher(fleet.Derive(purpose))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// ringPurpose derives the key that the gossip's keys are sealed with.
const ringPurpose = "gossip ring"

func sealRing(fleet mark.Key, keys [][]byte) ([]byte, error) {
	plain, err := json.Marshal(keys)
	if err != nil {
		return nil, err
	}
	return seal(fleet, ringPurpose, plain)
}

func openRing(fleet mark.Key, sealed []byte) ([][]byte, error) {
	plain, err := unseal(fleet, ringPurpose, sealed)
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	if err := json.Unmarshal(plain, &keys); err != nil {
		return nil, fmt.Errorf("gossip keys in the store: %w", err)
	}
	return keys, gossip.CheckKeys(keys)
}

// syncRing makes our gossip keys those in the store, when there are any.
func (c *Controller) syncRing(ctx context.Context) error {
	sealed, err := c.store.Ring(ctx)
	if err != nil || len(sealed) == 0 || c.cfg.GossipKeys == "" {
		return err
	}
	keys, err := openRing(c.signer.key, sealed)
	if err != nil {
		return err
	}
	have, err := gossip.ReadKeys(c.cfg.GossipKeys)
	if err == nil && slices.EqualFunc(have, keys, bytes.Equal) {
		return nil
	}
	if err := gossip.WriteKeys(c.cfg.GossipKeys, keys); err != nil {
		return fmt.Errorf("gossip keys: %w", err)
	}
	c.log.Info("the gossip keys changed", "keys", len(keys))
	c.pusher.wake()
	if c.gossip == nil {
		return nil
	}
	return c.gossip.SetKeys(keys)
}

// RotateGossip puts a new gossip key in the place of the old ones.
func (s *service) RotateGossip(ctx context.Context, _ *controllerv1.RotateGossipRequest) (*controllerv1.RotateGossipResponse, error) {
	late, err := s.c.rotateGossip(ctx)
	return &controllerv1.RotateGossipResponse{Late: late}, err
}

// rotateGossip goes in three steps, each waited for: all can receive with the new
// key, all send with it, nobody receives with another. It is not undone when ctx
// ends in between: again is from the start, and right from everywhere. It returns who
// did not take the last step in time.
func (c *Controller) rotateGossip(ctx context.Context) ([]string, error) {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	old, err := gossip.ReadKeys(c.cfg.GossipKeys)
	if err != nil {
		return nil, err
	}
	old = old[:min(len(old), maxRing-1)]
	fresh := gossip.NewKey()
	var late []string
	for _, ring := range [][][]byte{append(slices.Clone(old), fresh), append([][]byte{fresh}, old...), {fresh}} {
		sealed, err := sealRing(c.signer.key, ring)
		if err != nil {
			return nil, err
		}
		if err := c.store.PutRing(ctx, sealed); err != nil {
			return nil, err
		}
		if err := c.syncRing(ctx); err != nil {
			return nil, err
		}
		if late, err = c.pusher.await(ctx, ringTimeout); err != nil {
			return nil, err
		}
	}
	c.log.Info("the gossip key was rotated", "late", late)
	return late, nil
}
