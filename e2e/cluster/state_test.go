package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestNamesThatTheKernelTakes(t *testing.T) {
	for name, good := range map[string]bool{
		"dev": true, "a": true, "test-2": true, "abcdefghijklmnopqrst": true,
		"": false, "-a": false, "a-": false, "2a": false, "Dev": false, "a/b": false, "..": false, "abcdefghijklmnopqrstu": false,
	} {
		if err := checkName(name); (err == nil) != good {
			t.Errorf("checkName(%q) = %v", name, err)
		}
	}
	if link := State("/a/very/long/path/of/a/checkout/.cluster/abcdefghijklmnopqrst").link(); len(link) > 15 {
		t.Errorf("the interface name %s is longer than the kernel's 15 bytes", link)
	}
}

func TestEqualNamesInTwoCheckoutsDoNotMeet(t *testing.T) {
	one, two := State("/one/.cluster/dev"), State("/two/.cluster/dev")
	if one.link() == two.link() || one.cgroup() == two.cgroup() {
		t.Fatalf("%s and %s share %s or %s", one, two, one.link(), one.cgroup())
	}
}

func TestRefusesAFolderTooDeepForSockets(t *testing.T) {
	deep := t.TempDir()
	for len(deep) < 90 {
		deep = filepath.Join(deep, "0123456789")
	}
	if _, err := (place{name: "dev", root: deep}).state(); err == nil {
		t.Fatalf("took %s although the sockets' paths are longer than the kernel's 107 bytes", deep)
	}
}

func TestTheLockOutlivesTheRemovalOfTheFolder(t *testing.T) {
	state := State(filepath.Join(t.TempDir(), "dev"))
	first, err := state.lock(context.Background(), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan *os.File, 1)
	waiting := make(chan struct{}, 1)
	go func() {
		file, err := state.lock(context.Background(), func(string) { waiting <- struct{}{} })
		if err != nil {
			t.Error(err)
		}
		second <- file
	}()
	select {
	case <-waiting:
	case <-time.After(10 * time.Second):
		t.Fatal("the second lock did not wait for the first within 10 s")
	}
	if err := os.RemoveAll(string(state)); err != nil {
		t.Fatal(err)
	}
	first.Close()
	file := <-second
	defer file.Close()
	if !sameFile(file, state.path("lock")) {
		t.Fatal("the second lock holds a removed file: a third would not see it")
	}
}

func TestRunsWhileTheNodesLockIsHeld(t *testing.T) {
	state := State(t.TempDir())
	if state.running() {
		t.Fatal("runs without a lock")
	}
	if err := takeNodeLock(state); err != nil {
		t.Fatal(err)
	}
	if !state.running() || state.nodePID() != os.Getpid() {
		t.Fatalf("running is %v with process %d; this process %d holds the lock", state.running(), state.nodePID(), os.Getpid())
	}
	nodeLock.Close()
	if state.running() {
		t.Fatal("runs although the lock was given up")
	}
}

func TestTheRecordComesBackAsItWasWritten(t *testing.T) {
	state := State(t.TempDir())
	if record, err := readRecord(state); record != nil || err != nil {
		t.Fatalf("read %v, %v where nothing was written", record, err)
	}
	subnet, err := chooseSubnet(nil)
	if err != nil {
		t.Fatal(err)
	}
	written := Record{Options: Options{GPUs: 2, GPUProduct: "X", Audit: true}, Subnet: subnet, Bin: "/bin"}
	if err := written.write(state); err != nil {
		t.Fatal(err)
	}
	read, err := readRecord(state)
	if err != nil || *read != written {
		t.Fatalf("wrote %+v, read %+v, %v", written, read, err)
	}
	if err := os.WriteFile(state.record(), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readRecord(state); err == nil {
		t.Fatal("took half a record")
	}
}
