package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netns"
)

// nodeName is the real node's name in every cluster.
const nodeName = "node1"

// Files that `up` hands to the node's first process, by number.
const (
	machineNetwork = 3
	stateLock      = 4
)

// startNode starts the node's first process in namespaces of its own. It goes
// on when this process ends, however it ends.
func startNode(state State, lock *os.File) error {
	network, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return fmt.Errorf("open the machine's network: %w", err)
	}
	defer network.Close()
	output, err := os.OpenFile(state.log("node"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open the node's log: %w", err)
	}
	defer output.Close()
	command := exec.Command("/proc/self/exe", "node", "--state", string(state))
	command.Args[0] = "chandler-cluster"
	command.Dir = "/"
	command.Stdout, command.Stderr = output, output
	command.ExtraFiles = []*os.File{network, lock}
	command.Env = []string{
		// containerd looks for runc, too.
		"PATH=" + state.path("bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		// Two cores are scarcer here than memory.
		"GOGC=200",
	}
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: cloneFlags, Setsid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start the node: %w", err)
	}
	return command.Process.Release()
}

func nodeCommand() *cobra.Command {
	state := ""
	command := &cobra.Command{
		Use:    "node",
		Short:  "The node's first process; started by up",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return node(State(state), os.Stderr)
		},
	}
	command.Flags().StringVar(&state, "state", "", "state folder")
	return command
}

// node turns the calling process, the first of its namespaces, into the
// cluster's node. It returns only where that fails.
func node(state State, log io.Writer) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("this is not the first process of its namespace: use up")
	}
	// Handed over open; the programs must not inherit them.
	syscall.CloseOnExec(machineNetwork)
	syscall.CloseOnExec(stateLock)
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)

	// From the first moment on the process is found by name, through its control group.
	if err := joinCgroup(state.cgroup()); err != nil {
		return err
	}
	if err := takeNodeLock(state); err != nil {
		return err
	}
	record, err := readRecord(state)
	if err != nil {
		return err
	}
	if record == nil {
		return fmt.Errorf("the cluster's record %s is missing", state.record())
	}
	// A later `up` or `down` may work on the cluster from here on: it finds it running.
	os.NewFile(stateLock, "lock").Close()

	if err := syscall.Sethostname([]byte(nodeName)); err != nil {
		return fmt.Errorf("set the node's host name: %w", err)
	}
	machine := netns.NsHandle(machineNetwork)
	if err := settleMounts(string(state), filepath.Dir(record.Bin)); err != nil {
		return err
	}
	if err := settleNetwork(machine, state.link(), record.Subnet); err != nil {
		return err
	}
	machine.Close()

	(&supervisor{state: state, log: log}).run(programs(state, *record))
	return nil
}

// takeNodeLock takes the lock that says "running" and writes this process's id, as the machine sees it, into it.
func takeNodeLock(state State) error {
	// The machine's /proc is still mounted here.
	pid, err := os.Readlink("/proc/self")
	if err != nil {
		return fmt.Errorf("read the node's process id: %w", err)
	}
	file, err := os.OpenFile(state.path("node.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("open the node's lock: %w", err)
	}
	// Never closed: it lives as long as the process.
	// Whoever looks whether the node runs holds the lock for a moment.
	for try := 0; ; try++ {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if try == 100 {
			return fmt.Errorf("lock %s: another node runs with this state folder: %w", file.Name(), err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	nodeLock = file
	if err := file.Truncate(0); err != nil {
		return err
	}
	_, err = file.WriteAt([]byte(pid+"\n"), 0)
	return err
}

// nodeLock keeps the lock's file from being closed by the garbage collector.
var nodeLock *os.File
