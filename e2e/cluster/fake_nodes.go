package main

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// fakeNodeMark is the annotation and the taint of the nodes that kwok plays.
const fakeNodeMark = "kwok.x-k8s.io/node"

func kwokArguments(state State, node string) []string {
	return []string{
		"--config=" + state.path("bin", "kwok-stages.yaml"),
		"--kubeconfig=" + state.path("settings", "kwok.kubeconfig"),
		"--manage-all-nodes=false",
		"--manage-nodes-with-annotation-selector=" + fakeNodeMark + "=fake",
		"--node-ip=" + node,
		"--node-lease-duration-seconds=40",
	}
}

// addFakeNodes creates the nodes; kwok makes them ready. The taint keeps pods
// that do not ask for a fake node on the real one.
func (c *cluster) addFakeNodes(ctx context.Context, count int) error {
	for number := range count {
		name := fmt.Sprintf("fake-%03d", number)
		capacity := map[string]any{"cpu": "32", "memory": "256Gi", "pods": "110"}
		node := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1",
			"kind":       "Node",
			"metadata": map[string]any{
				"name":        name,
				"annotations": map[string]any{fakeNodeMark: "fake"},
				"labels": map[string]any{
					"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "type": "kwok",
				},
			},
			"spec":   map[string]any{"taints": []any{map[string]any{"key": fakeNodeMark, "value": "fake", "effect": "NoSchedule"}}},
			"status": map[string]any{"capacity": capacity, "allocatable": capacity},
		}}
		if err := c.applyObject(ctx, node); err != nil {
			return fmt.Errorf("add the fake node %s: %w", name, err)
		}
	}
	return nil
}
