package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// gpuResource is what NVIDIA's device plugin registers.
const gpuResource = "nvidia.com/gpu"

// gpuNodeLabels are the labels that NVIDIA's GPU Feature Discovery sets; the
// memory of one GPU is in MiB.
func gpuNodeLabels(options Options) []string {
	if options.GPUs == 0 {
		return nil
	}
	return []string{"--node-labels=" + strings.Join([]string{
		"nvidia.com/gpu.present=true",
		"nvidia.com/gpu.product=" + options.GPUProduct,
		fmt.Sprintf("nvidia.com/gpu.memory=%d", options.GPUMemoryMiB),
		fmt.Sprintf("nvidia.com/gpu.count=%d", options.GPUs),
	}, ",")}
}

func devicePluginCommand() *cobra.Command {
	count := 0
	command := &cobra.Command{
		Use:    "device-plugin",
		Short:  "Offer GPUs without devices to the node's kubelet; started by the node",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return serveDevices(command.Context(), count)
		},
	}
	command.Flags().IntVar(&count, "count", 1, "number of GPUs")
	return command
}

// serveDevices offers the devices until the kubelet goes away; then it
// returns, and the node's first process starts it again.
func serveDevices(ctx context.Context, count int) error {
	err := poll(ctx, time.Minute, "the kubelet's socket "+deviceplugin.KubeletSocket, func() (bool, error) {
		return accepts("unix", deviceplugin.KubeletSocket), nil
	})
	if err != nil {
		return err
	}
	kubelet, err := os.Stat(deviceplugin.KubeletSocket)
	if err != nil {
		return err
	}
	socket := filepath.Join(deviceplugin.DevicePluginPath, "chandler-gpu.sock")
	if err := os.RemoveAll(socket); err != nil {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen for the kubelet: %w", err)
	}
	server := grpc.NewServer()
	deviceplugin.RegisterDevicePluginServer(server, &devices{count: count})
	failed := make(chan error, 1) // one server
	go func() { failed <- server.Serve(listener) }()
	defer server.Stop()

	if err := register(ctx, filepath.Base(socket)); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "registered %d devices of %s\n", count, gpuResource)
	for {
		select {
		case err := <-failed:
			return fmt.Errorf("serve the kubelet: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
			// A kubelet that starts anew makes a new socket and knows no plugin.
			now, err := os.Stat(deviceplugin.KubeletSocket)
			if err != nil || !os.SameFile(kubelet, now) {
				return fmt.Errorf("the kubelet went away")
			}
		}
	}
}

func register(ctx context.Context, endpoint string) error {
	connection, err := grpc.NewClient("unix://"+deviceplugin.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	_, err = deviceplugin.NewRegistrationClient(connection).Register(ctx, &deviceplugin.RegisterRequest{
		Version: deviceplugin.Version, Endpoint: endpoint, ResourceName: gpuResource,
	})
	if err != nil {
		return fmt.Errorf("register %s with the kubelet: %w", gpuResource, err)
	}
	return nil
}

type devices struct {
	deviceplugin.UnimplementedDevicePluginServer
	count int
}

func (d *devices) GetDevicePluginOptions(context.Context, *deviceplugin.Empty) (*deviceplugin.DevicePluginOptions, error) {
	return &deviceplugin.DevicePluginOptions{}, nil
}

func (d *devices) ListAndWatch(_ *deviceplugin.Empty, stream grpc.ServerStreamingServer[deviceplugin.ListAndWatchResponse]) error {
	response := &deviceplugin.ListAndWatchResponse{}
	for number := range d.count {
		response.Devices = append(response.Devices, &deviceplugin.Device{ID: fmt.Sprintf("GPU-%d", number), Health: deviceplugin.Healthy})
	}
	if err := stream.Send(response); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// Allocate tells the container which devices it got, as NVIDIA's plugin does.
func (d *devices) Allocate(_ context.Context, request *deviceplugin.AllocateRequest) (*deviceplugin.AllocateResponse, error) {
	response := &deviceplugin.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		response.ContainerResponses = append(response.ContainerResponses, &deviceplugin.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(container.DevicesIds, ",")},
		})
	}
	return response, nil
}
