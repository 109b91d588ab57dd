package main

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	pods       = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	nodes      = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	namespaces = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
)

// waitForProbe waits until one pod has been answered by another through a
// Service, found by its name: node, network, Service and DNS work together.
func (c *cluster) waitForProbe(ctx context.Context) error {
	state := "not created"
	err := poll(ctx, 90*time.Second, "the probe pod's answer through its Service", func() (bool, error) {
		pod, err := c.dynamic.Resource(pods).Namespace(probeNamespace).Get(ctx, "client", metav1.GetOptions{})
		if err != nil {
			state = err.Error()
			return false, nil
		}
		state, _, _ = unstructured.NestedString(pod.Object, "status", "phase")
		if state == "Failed" {
			return false, fmt.Errorf("the probe's client failed: kubectl -n %s describe pods", probeNamespace)
		}
		return state == "Succeeded", nil
	})
	if err != nil {
		return fmt.Errorf("%w (the client pod: %s; look with kubectl -n %s describe pods)", err, state, probeNamespace)
	}
	return nil
}

// removeProbe does not wait: the cluster clears the namespace by itself.
func (c *cluster) removeProbe(ctx context.Context) error {
	err := c.dynamic.Resource(namespaces).Delete(ctx, probeNamespace, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove the probe's namespace: %w", err)
	}
	return nil
}
