package main

import (
	"context"
	"fmt"
	"io"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// status writes what a person wants to know about the cluster and returns whether it runs.
func status(ctx context.Context, state State, out io.Writer) (bool, error) {
	if !state.running() {
		fmt.Fprintf(out, "cluster %s does not run\n", state.name())
		return false, nil
	}
	record, err := readRecord(state)
	if err != nil {
		return true, err
	}
	if record == nil {
		return true, fmt.Errorf("cluster %s runs but its record is lost: take it down and start it again", state.name())
	}
	word := "runs"
	if _, err := os.Stat(state.ready()); err != nil {
		word = "is starting, or its start was cut short (up completes it)"
	}
	fmt.Fprintf(out, "cluster %s %s with %s\n", state.name(), word, record.Options)
	fmt.Fprintf(out, "  kubeconfig  %s\n  logs        %s\n  programs    %s\n  address     %s\n", state.kubeconfig(), state.path("log"), state.path("bin"), record.Subnet.Node)
	api, err := connect(state)
	if err != nil {
		return true, err
	}
	list, err := api.dynamic.Resource(nodes).List(ctx, metav1.ListOptions{})
	if err != nil {
		return true, fmt.Errorf("ask the API server for its nodes: %w", err)
	}
	for _, node := range list.Items {
		word := "not ready"
		if isReady(node.Object) {
			word = "ready"
		}
		line := fmt.Sprintf("  node        %s %s", node.GetName(), word)
		if gpus := allocatable(node.Object, gpuResource); gpus != "" {
			line += fmt.Sprintf(", %s GPUs", gpus)
		}
		fmt.Fprintln(out, line)
	}
	return true, nil
}

func isReady(node map[string]any) bool {
	conditions, _, _ := unstructured.NestedSlice(node, "status", "conditions")
	for _, condition := range conditions {
		if fields, ok := condition.(map[string]any); ok && fields["type"] == "Ready" {
			return fields["status"] == "True"
		}
	}
	return false
}

func allocatable(node map[string]any, resource string) string {
	value, _, _ := unstructured.NestedString(node, "status", "allocatable", resource)
	return value
}
