package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// up starts the cluster, or completes what another up began, or says that it runs.
func up(ctx context.Context, state State, bin string, options Options) error {
	began := time.Now()
	if err := options.check(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	say := func(format string, values ...any) {
		fmt.Fprintf(os.Stderr, "cluster %s: %5.1f s  %s\n", state.name(), time.Since(began).Seconds(), fmt.Sprintf(format, values...))
	}
	if err := checkPrograms(bin, options); err != nil {
		return err
	}
	lock, err := state.lock(ctx, func(text string) { say("%s", text) })
	if err != nil {
		return err
	}
	defer lock.Close()

	fresh := true
	if state.running() {
		record, err := readRecord(state)
		if err != nil {
			return err
		}
		if record == nil {
			return fmt.Errorf("cluster %s runs but its record is lost: take it down and start it again", state.name())
		}
		if record.Options != options {
			return fmt.Errorf("cluster %s runs with %s, not with %s: take it down first, or choose another name", state.name(), record.Options, options)
		}
		if _, err := os.Stat(state.ready()); err == nil {
			say("runs already; nothing to do")
			fmt.Println(state.kubeconfig())
			return nil
		}
		fresh = false
		say("an earlier start was cut short; completing it")
	} else {
		if err := begin(ctx, state, bin, options, lock, say); err != nil {
			return err
		}
	}

	record, err := readRecord(state)
	if err != nil {
		return err
	}
	if err := complete(ctx, state, *record, say); err != nil {
		return fmt.Errorf("%w\nthe logs are in %s; the last lines that speak of trouble:\n%s", err, state.path("log"), trouble(state))
	}
	seconds := time.Since(began).Seconds()
	if err := writeFile(state.ready(), fmt.Appendf(nil, "%.1f\n", seconds), 0o644); err != nil {
		return err
	}
	if fresh {
		fmt.Fprintf(os.Stderr, "figure cluster_warm_start_s %.1f s\n", seconds)
	}
	fmt.Println(state.kubeconfig())
	return nil
}

// begin clears what a dead cluster left, writes the record, and starts the node.
func begin(ctx context.Context, state State, bin string, options Options, lock *os.File, say func(string, ...any)) error {
	if err := sweep(ctx, state); err != nil {
		return err
	}
	// Addresses are chosen by one start at a time: the choice is taken when the link has its address.
	addresses, err := lockAddresses()
	if err != nil {
		return err
	}
	defer addresses.Close()
	used, err := usedPrefixes()
	if err != nil {
		return err
	}
	subnet, err := chooseSubnet(used)
	if err != nil {
		return err
	}
	record := Record{Options: options, Subnet: subnet, Bin: bin}
	if err := record.write(state); err != nil {
		return fmt.Errorf("write the cluster's record: %w", err)
	}
	for _, folder := range []string{"log", "run", "data/volumes", "data/podlogs"} {
		if err := os.MkdirAll(state.path(folder), 0o755); err != nil {
			return err
		}
	}
	if err := writePKI(state, subnet); err != nil {
		return err
	}
	if err := writeSettings(state, record); err != nil {
		return err
	}
	if err := os.Symlink(bin, state.path("bin")); err != nil {
		return err
	}
	if err := startNode(state, lock); err != nil {
		return err
	}
	say("starting the node at %s; state and logs in %s", subnet.Node, state)
	return poll(ctx, 20*time.Second, "the node's network; see "+state.log("node"), func() (bool, error) {
		// Only the address makes the choice visible to the next start.
		if link, err := netlink.LinkByName(state.link()); err == nil {
			if addresses, err := netlink.AddrList(link, netlink.FAMILY_V4); err == nil && len(addresses) > 0 {
				return true, nil
			}
		}
		if !state.running() && fileHolds(state.log("node"), "chandler-cluster:") {
			return false, fmt.Errorf("the node ended: %s", trouble(state))
		}
		return false, nil
	})
}

// complete brings everything inside the cluster into place. Each step may be repeated.
func complete(ctx context.Context, state State, record Record, say func(string, ...any)) error {
	if record.Options.NoNode {
		return waitForAPI(ctx, state, record)
	}
	images := make(chan error, 1) // one result
	go func() {
		err := importImages(ctx, state, record)
		if err == nil {
			say("images imported")
		}
		images <- err
	}()

	if err := waitForAPI(ctx, state, record); err != nil {
		return err
	}
	say("API server ready")
	api, err := connect(state)
	if err != nil {
		return err
	}
	facts := addonFactsOf(state, record)
	for _, file := range []string{"coredns.yaml", "probe.yaml", "local-path.yaml"} {
		if err := api.applyPatiently(ctx, file, facts); err != nil {
			return err
		}
	}
	say("add-ons applied")
	if err := api.addFakeNodes(ctx, record.Options.FakeNodes); err != nil {
		return err
	}
	if err := <-images; err != nil {
		return err
	}
	if err := api.waitForProbe(ctx); err != nil {
		return err
	}
	say("a pod has answered through its Service")
	if err := api.waitForOptions(ctx, record.Options); err != nil {
		return err
	}
	return api.removeProbe(ctx)
}

func waitForAPI(ctx context.Context, state State, record Record) error {
	client := apiClient(state)
	return poll(ctx, 90*time.Second, "the API server", func() (bool, error) {
		if !state.running() {
			return false, fmt.Errorf("the node ended")
		}
		return answers(client, "https://"+record.Subnet.Node.String()+":6443/readyz"), nil
	})
}

// lockAddresses is held by one start at a time on the whole machine. It locks
// the folder of the machine's network interfaces, so no file is left behind.
func lockAddresses() (*os.File, error) {
	folder, err := os.Open("/sys/class/net")
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(folder.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", folder.Name(), err)
	}
	return folder, nil
}

// usedPrefixes are the machine's own addresses and everything it has a route to.
func usedPrefixes() ([]netip.Prefix, error) {
	var used []netip.Prefix
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list the machine's addresses: %w", err)
	}
	for _, address := range addresses {
		if prefix, err := netip.ParsePrefix(address.IPNet.String()); err == nil {
			used = append(used, prefix.Masked())
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list the machine's routes: %w", err)
	}
	for _, route := range routes {
		if route.Dst == nil {
			continue
		}
		if prefix, err := netip.ParsePrefix(route.Dst.String()); err == nil {
			used = append(used, prefix.Masked())
		}
	}
	return used, nil
}

// trouble collects the ends of the logs that a person would look at first.
func trouble(state State) string {
	var text strings.Builder
	files, _ := filepath.Glob(state.log("*"))
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil || filepath.Base(file) == "audit.log" {
			continue
		}
		var lines []string
		for _, line := range strings.Split(string(content), "\n") {
			if isTrouble(line) {
				lines = append(lines, line)
			}
		}
		for _, line := range lines[max(0, len(lines)-3):] {
			fmt.Fprintf(&text, "%s: %.400s\n", filepath.Base(file), line)
		}
	}
	return text.String()
}

// isTrouble knows the programs' ways of marking errors: klog's E and F, logfmt's level, our own notes.
func isTrouble(line string) bool {
	if len(line) > 5 && (line[0] == 'E' || line[0] == 'F') && line[1] >= '0' && line[1] <= '9' {
		return true
	}
	for _, mark := range []string{"level=error", "level=fatal", `"level":"error"`, `"level":"fatal"`, "ended (exit", "start failed", "chandler-cluster:", "panic:"} {
		if strings.Contains(line, mark) {
			return true
		}
	}
	return false
}

func fileHolds(path, text string) bool {
	content, err := os.ReadFile(path)
	return err == nil && strings.Contains(string(content), text)
}

// waitForOptions waits until what the options promise is there.
func (c *cluster) waitForOptions(ctx context.Context, options Options) error {
	if options.FakeNodes == 0 && options.GPUs == 0 {
		return nil
	}
	return poll(ctx, 60*time.Second, "the node's GPUs and the fake nodes", func() (bool, error) {
		list, err := c.dynamic.Resource(nodes).List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, nil
		}
		ready := 0
		gpus := options.GPUs == 0
		for _, node := range list.Items {
			if isReady(node.Object) {
				ready++
			}
			if node.GetName() == nodeName && allocatable(node.Object, gpuResource) == fmt.Sprint(options.GPUs) {
				gpus = true
			}
		}
		return ready == options.FakeNodes+1 && gpus, nil
	})
}
