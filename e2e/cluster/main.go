// Command chandler-cluster runs a real Kubernetes on this machine, from
// programs that `build` made out of published modules.
//
// The way of a cluster: `up` writes down what it is about to create
// (record.go), starts the node (node.go) in namespaces and a cgroup of its own
// (namespaces.go, cgroup.go), which starts and restarts the programs
// (programs.go, supervise.go); then `up` applies the add-ons (addons.go) and
// waits for the probe pod (probe.go). `down` ends the node's first process,
// and everything inside the node's namespaces ends with it (down.go).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "chandler-cluster: %v\n", err)
		os.Exit(1)
	}
}

// place is where a cluster and its programs are found.
type place struct {
	name string // of the cluster
	root string // folder of all state folders
	bin  string // folder with the programs, as `build` prints it
}

func (p place) state() (State, error) {
	if err := checkName(p.name); err != nil {
		return "", err
	}
	root, err := filepath.Abs(p.root)
	if err != nil {
		return "", fmt.Errorf("resolve the folder %q: %w", p.root, err)
	}
	// The kernel takes 107 bytes for a socket's path; the longest here is the kubelet's, named by a number of up to ten digits.
	state := State(filepath.Join(realPath(root), p.name))
	if length := len(state.path("data/kubelet/pod-resources/0123456789")); length > 107 {
		return "", fmt.Errorf("the state folder %s is too deep: its sockets' paths have %d bytes of at most 107; set --root to a shorter folder", state, length)
	}
	return state, nil
}

// realPath resolves symbolic links as far as the path exists: a cluster has one name, whichever way it is reached.
func realPath(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil || path == filepath.Dir(path) {
		return resolved
	}
	return filepath.Join(realPath(filepath.Dir(path)), filepath.Base(path))
}

func command() *cobra.Command {
	at := place{}
	root := &cobra.Command{
		Use:           "chandler-cluster",
		Short:         "A real Kubernetes on this machine, from published modules",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&at.name, "name", "dev", "name of the cluster")
	root.PersistentFlags().StringVar(&at.root, "root", environment("CHANDLER_CLUSTER_ROOT", ".cluster"), "folder that holds one state folder per cluster [CHANDLER_CLUSTER_ROOT]")
	root.PersistentFlags().StringVar(&at.bin, "bin", environment("CHANDLER_CLUSTER_BIN", filepath.Dir(os.Args[0])), "folder with the programs [CHANDLER_CLUSTER_BIN]")

	options := Options{}
	up := &cobra.Command{
		Use:   "up",
		Short: "Start the cluster, wait until a pod has answered through a Service, print the kubeconfig's path",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			state, err := at.state()
			if err != nil {
				return err
			}
			return up(command.Context(), state, at.bin, options)
		},
	}
	up.Flags().IntVar(&options.FakeNodes, "fake-nodes", 0, "add this many nodes played by kwok")
	up.Flags().IntVar(&options.GPUs, "gpus", 0, "offer this many nvidia.com/gpu devices on the real node; there are no device files behind them")
	up.Flags().StringVar(&options.GPUProduct, "gpu-product", "NVIDIA-H100-80GB-HBM3", "the node's label nvidia.com/gpu.product, with --gpus")
	up.Flags().IntVar(&options.GPUMemoryMiB, "gpu-memory", 81559, "the node's label nvidia.com/gpu.memory in MiB, with --gpus")
	up.Flags().BoolVar(&options.NoNode, "no-node", false, "start only etcd, the API server and the controllers that make and clear away children: nothing runs pods")
	up.Flags().BoolVar(&options.Audit, "audit", false, "write log/audit.log in the state folder")

	root.AddCommand(up,
		&cobra.Command{
			Use:   "down",
			Short: "End the cluster and remove all that belongs to it",
			Args:  cobra.NoArgs,
			RunE: func(command *cobra.Command, _ []string) error {
				state, err := at.state()
				if err != nil {
					return err
				}
				return down(command.Context(), state)
			},
		},
		&cobra.Command{
			Use:   "status",
			Short: "Say whether the cluster runs, and with what; exit with 3 where it does not",
			Args:  cobra.NoArgs,
			RunE: func(command *cobra.Command, _ []string) error {
				state, err := at.state()
				if err != nil {
					return err
				}
				running, err := status(command.Context(), state, os.Stdout)
				if err == nil && !running {
					os.Exit(3)
				}
				return err
			},
		},
		&cobra.Command{
			Use:   "kubeconfig",
			Short: "Print the kubeconfig's path",
			Args:  cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				state, err := at.state()
				if err != nil {
					return err
				}
				if !state.running() {
					return fmt.Errorf("cluster %s does not run: start it with up", state.name())
				}
				fmt.Println(state.kubeconfig())
				return nil
			},
		},
		&cobra.Command{
			Use:   "load FILE.tar...",
			Short: "Import image archives (OCI or Docker) into the cluster",
			Args:  cobra.MinimumNArgs(1),
			RunE: func(command *cobra.Command, files []string) error {
				state, err := at.state()
				if err != nil {
					return err
				}
				if !state.running() {
					return fmt.Errorf("cluster %s does not run: start it with up", state.name())
				}
				return load(command.Context(), state, os.Stdout, files...)
			},
		},
		imageCommand(),
		nodeCommand(),
		devicePluginCommand(),
	)
	return root
}

func environment(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}

var errNotRoot = errors.New("a cluster makes namespaces, cgroups and mounts: run this as root")
