package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// cloneFlags give the node its own processes, mounts, network, host name and
// message queues. When the first process ends, the kernel ends the others and
// takes mounts and network away with them: nothing needs to be unmounted one by one.
const cloneFlags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

// settleMounts makes the node's view of the file system: its own /proc, and
// private copies of the folders whose paths are fixed in kubelet, containerd
// and CNI, so that clusters do not meet there, nor a cluster the machine's own
// containerd or kubelet.
func settleMounts(keep ...string) error {
	// Private first, so that nothing from here reaches the machine; then shared
	// inside, which the kubelet wants for volumes that carry mounts into pods.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the node's mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount the node's /proc: %w", err)
	}
	// Opened before anything is covered, and put back on top where it was.
	kept := map[string]*os.File{}
	for _, path := range keep {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		kept[path] = file
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount the node's /run: %w", err)
	}
	covered := []string{"/run", "/var/run"}
	for _, path := range []string{"/var/lib", "/var/log"} {
		upper := filepath.Join("/run/private", path, "upper")
		work := filepath.Join("/run/private", path, "work")
		for _, folder := range []string{upper, work} {
			if err := os.MkdirAll(folder, 0o755); err != nil {
				return err
			}
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", path, upper, work)
		if err := syscall.Mount("overlay", path, "overlay", 0, options); err != nil {
			return fmt.Errorf("cover the node's %s: %w", path, err)
		}
		covered = append(covered, path)
	}
	for path, file := range kept {
		for _, cover := range covered {
			if strings.HasPrefix(path, cover+"/") {
				if err := os.MkdirAll(path, 0o755); err != nil {
					return err
				}
				if err := syscall.Mount(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), path, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
					return fmt.Errorf("keep %s visible to the node: %w", path, err)
				}
			}
		}
	}
	if err := coverSysctls(); err != nil {
		return err
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share the node's mounts among its programs: %w", err)
	}
	return nil
}

// kubeletSysctls are the kernel's settings that a kubelet changes for the
// whole machine when they have other values. It finds these values in their
// place and leaves the machine's alone.
var kubeletSysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

func coverSysctls() error {
	for name, value := range kubeletSysctls {
		file := filepath.Join("/run/private/sysctl", strings.ReplaceAll(name, "/", "."))
		if err := writeFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := syscall.Mount(file, filepath.Join("/proc/sys", name), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover the kernel's setting %s: %w", name, err)
		}
	}
	return nil
}

// settleNetwork joins the node's network to the machine's by one veth pair.
// There is no default route: a pod reaches the cluster and nothing else. The
// node's own programs reach Services, too: containerd pulls from a registry
// behind one. Before kube-proxy's rules turn such an address into a pod's, the
// kernel wants some route for it.
func settleNetwork(machine netns.NsHandle, link string, subnet Subnet) error {
	outside, err := netlink.NewHandleAt(machine)
	if err != nil {
		return fmt.Errorf("open the machine's network: %w", err)
	}
	defer outside.Close()
	if err := removeLink(outside, link); err != nil {
		return err
	}
	inside := "eth0"
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: inside},
		PeerName:      link,
		PeerNamespace: netlink.NsFd(machine),
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("make the veth pair %s: %w", link, err)
	}
	here, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer here.Close()
	if err := raise(here, "lo", ""); err != nil {
		return err
	}
	if err := raise(here, inside, subnet.Node.String()+"/30"); err != nil {
		return err
	}
	if err := routeServices(here, inside); err != nil {
		return err
	}
	if err := raise(outside, link, subnet.Machine.String()+"/30"); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return fmt.Errorf("let the node forward its pods' packets: %w", err)
	}
	return nil
}

func routeServices(handle *netlink.Handle, name string) error {
	link, err := handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the interface %s: %w", name, err)
	}
	_, services, err := net.ParseCIDR(serviceCIDR)
	if err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: services, Scope: netlink.SCOPE_LINK}
	if err := handle.RouteAdd(route); err != nil {
		return fmt.Errorf("give the node a route to %s: %w", services, err)
	}
	return nil
}

func raise(handle *netlink.Handle, name, address string) error {
	link, err := handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the interface %s: %w", name, err)
	}
	if address != "" {
		parsed, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := handle.AddrAdd(link, parsed); err != nil {
			return fmt.Errorf("give %s to the interface %s: %w", address, name, err)
		}
	}
	if err := handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring the interface %s up: %w", name, err)
	}
	return nil
}

// removeLink takes one end of a pair away, and the other goes with it.
func removeLink(handle *netlink.Handle, name string) error {
	link, err := handle.LinkByName(name)
	if _, missing := err.(netlink.LinkNotFoundError); missing {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the interface %s: %w", name, err)
	}
	if err := handle.LinkDel(link); err != nil {
		return fmt.Errorf("remove the interface %s: %w", name, err)
	}
	return nil
}
