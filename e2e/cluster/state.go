package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// State is the absolute path of one cluster's state folder. Everything that
// the cluster has on the machine outside of it (a cgroup folder, a network
// interface) is named after this path, so that it is found again by name even
// where the folder's content is lost.
type State string

func (s State) name() string { return filepath.Base(string(s)) }

// id tells clusters of the same name in different checkouts apart.
func (s State) id() string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:4])
}

// cgroup is the folder's name in every hierarchy.
func (s State) cgroup() string { return "chandler-" + s.name() + "-" + s.id() }

// link is the machine's end of the cluster's veth pair. The kernel takes 15 bytes.
func (s State) link() string { return "chd-" + s.id() }

func (s State) path(parts ...string) string {
	return filepath.Join(append([]string{string(s)}, parts...)...)
}

func (s State) record() string            { return s.path("cluster.json") }
func (s State) kubeconfig() string        { return s.path("kubeconfig") }
func (s State) log(program string) string { return s.path("log", program+".log") }
func (s State) containerdSocket() string  { return s.path("run", "containerd.sock") }
func (s State) ready() string             { return s.path("ready") }

// running says whether the node's first process lives: it holds a lock for its whole life.
func (s State) running() bool {
	file, err := os.Open(s.path("node.lock"))
	if err != nil {
		return false
	}
	defer file.Close()
	// Shared, so that two who look do not take each other for the node.
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		return errors.Is(err, syscall.EWOULDBLOCK)
	}
	return false
}

// nodePID is the process id of the node's first process, as the machine sees
// it, or 0. It is only meaningful while running() holds.
func (s State) nodePID() int {
	content, err := os.ReadFile(s.path("node.lock"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return 0
	}
	return pid
}

// lockPatience is longer than the sum of an up's own deadlines.
const lockPatience = 10 * time.Minute

// lock waits until no other `up` or `down` works on this cluster. The lock
// ends with the process (and with the node's first process while that has not
// yet made itself known), so nothing is left to clean after a kill -9.
func (s State) lock(ctx context.Context, say func(string)) (*os.File, error) {
	path := s.path("lock")
	deadline := time.Now().Add(lockPatience)
	said := false
	for {
		if err := os.MkdirAll(string(s), 0o755); err != nil {
			return nil, fmt.Errorf("create the state folder: %w", err)
		}
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if errors.Is(err, os.ErrNotExist) {
			continue // a `down` removed the folder in between
		}
		if err != nil {
			return nil, fmt.Errorf("open the lock: %w", err)
		}
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil && sameFile(file, path) {
			return file, nil
		}
		file.Close()
		if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("waited %s for another up or down of this cluster to end (it holds %s)", lockPatience, path)
		}
		if err != nil && !said {
			said = true
			say("waiting for another up or down of this cluster to end")
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// sameFile says whether the path still names the open file: a `down` removes the lock's file with the folder.
func sameFile(file *os.File, path string) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(opened, named)
}

var validName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$`)

func checkName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("the name %q does not do: use up to 20 lower-case letters, digits and dashes, beginning with a letter", name)
	}
	return nil
}
