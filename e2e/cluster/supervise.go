package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// program is one long-running process of the node.
type program struct {
	name string
	path string
	args []string
	// after is closed when the first start may happen; nil starts at once.
	after <-chan struct{}
}

// when returns a channel that is closed once the answer is yes. One question
// serves all the programs that wait for it.
func when(ask func() bool) <-chan struct{} {
	yes := make(chan struct{})
	go func() {
		for !ask() {
			time.Sleep(50 * time.Millisecond)
		}
		close(yes)
	}()
	return yes
}

// supervisor starts programs and starts them again when they end. It is the
// first process of the node's process namespace, so it also reaps what its
// children leave behind: containerd's shims are orphans by design. Only one
// place waits for processes, so that reaping and restarting cannot race.
type supervisor struct {
	state State
	log   io.Writer
	mutex sync.Mutex // held from a start until the child's id is noted
	alive map[int]chan syscall.WaitStatus
}

// restartPause keeps a program that cannot start from taking the machine.
const restartPause = time.Second

func (s *supervisor) note(format string, values ...any) {
	fmt.Fprintf(s.log, "%s %s\n", time.Now().Format(time.RFC3339Nano), fmt.Sprintf(format, values...))
}

// run never returns: the node ends when this process is killed.
func (s *supervisor) run(programs []program) {
	s.alive = map[int]chan syscall.WaitStatus{}
	for _, one := range programs {
		go s.keep(one)
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err != nil {
			// No child yet, or a signal came in between.
			time.Sleep(10 * time.Millisecond)
			continue
		}
		s.mutex.Lock()
		ended := s.alive[pid]
		delete(s.alive, pid)
		s.mutex.Unlock()
		if ended != nil {
			ended <- status
		}
	}
}

func (s *supervisor) keep(one program) {
	if one.after != nil {
		<-one.after
	}
	for {
		ended, err := s.start(one)
		if err != nil {
			s.note("%s: start failed: %v", one.name, err)
		} else {
			status := <-ended
			s.note("%s: ended (exit status %d, signal %d); starting it again in %s", one.name, status.ExitStatus(), status.Signal(), restartPause)
		}
		time.Sleep(restartPause)
	}
}

func (s *supervisor) start(one program) (chan syscall.WaitStatus, error) {
	output, err := os.OpenFile(s.state.log(one.name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	input, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer input.Close()

	ended := make(chan syscall.WaitStatus, 1) // one process ends once
	s.mutex.Lock()
	defer s.mutex.Unlock()
	process, err := os.StartProcess(one.path, append([]string{one.path}, one.args...), &os.ProcAttr{
		Dir:   string(s.state),
		Env:   os.Environ(),
		Files: []*os.File{input, output, output},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, err
	}
	s.alive[process.Pid] = ended
	s.note("%s: started as process %d of the node", filepath.Base(one.path), process.Pid)
	return ended, process.Release()
}
