package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

//go:embed addons
var addonFiles embed.FS

// addonFacts are what the add-ons' templates may use.
type addonFacts struct {
	facts
	CoreDNS, LocalPath, Busybox string // tags of the images
	Probe                       string // the probe's namespace and answer
}

// probeNamespace holds the probe while `up` waits for it.
const probeNamespace = "chandler-probe"

func addonFactsOf(state State, record Record) addonFacts {
	return addonFacts{settingsFacts(state, record), imageTags["coredns"], imageTags["local-path-provisioner"], imageTags["busybox"], probeNamespace}
}

// cluster is a client of the cluster's API.
type cluster struct {
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

func connect(state State) (*cluster, error) {
	config, err := clientcmd.BuildConfigFromFlags("", state.kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", state.kubeconfig(), err)
	}
	config.QPS, config.Burst = 200, 400
	// The node is on this machine, whatever proxy leads out of it.
	config.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	discover, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	return &cluster{client, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discover))}, nil
}

// apply sends every object of an add-on to the API server, as this program's own.
func (c *cluster) apply(ctx context.Context, file string, values any) error {
	content, err := render("addons/"+file, addonFiles, values)
	if err != nil {
		return err
	}
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(&object.Object); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("parse %s: %w", file, err)
		}
		if err := c.applyObject(ctx, object); err != nil {
			return fmt.Errorf("apply %s %q of %s: %w", object.GetKind(), object.GetName(), file, err)
		}
	}
}

func (c *cluster) applyObject(ctx context.Context, object *unstructured.Unstructured) error {
	kind := object.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return err
	}
	var resource dynamic.ResourceInterface = c.dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		resource = c.dynamic.Resource(mapping.Resource).Namespace(object.GetNamespace())
	}
	_, err = resource.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: "chandler-cluster", Force: true})
	return err
}

// applyPatiently tries again while the API server still builds its own
// first objects: namespaces and priority classes appear just after it is ready.
func (c *cluster) applyPatiently(ctx context.Context, file string, values any) error {
	var last error
	err := poll(ctx, 60*time.Second, "the API server to take "+file, func() (bool, error) {
		last = c.apply(ctx, file, values)
		return last == nil, nil
	})
	if err != nil {
		return errors.Join(err, last)
	}
	return nil
}
