package main

import (
	"bytes"
	"embed"
	"fmt"
	"text/template"
)

//go:embed settings
var settingsFiles embed.FS

// imagePrefix is the registry part of the names of the images that a cluster brings along.
const imagePrefix = "cluster.chandler.dev"

// facts are what the settings' templates may use.
type facts struct {
	State, Bin, Cgroup, Images                      string
	PodCIDR, PodSubnet, DNSService, RegistryService string
}

func settingsFacts(state State, record Record) facts {
	return facts{
		State: string(state), Bin: record.Bin, Cgroup: state.cgroup(), Images: imagePrefix,
		PodCIDR: podCIDR, PodSubnet: podSubnet, DNSService: dnsService, RegistryService: registryService,
	}
}

// settingsTargets says where each file goes in the state folder.
var settingsTargets = map[string]string{
	"containerd.toml":      "settings/containerd.toml",
	"cni/10-pods.conflist": "settings/cni/10-pods.conflist",
	"kubelet.yaml":         "settings/kubelet.yaml",
	"kube-proxy.yaml":      "settings/kube-proxy.yaml",
	"audit.yaml":           "settings/audit.yaml",
	"resolv.conf":          "settings/resolv.conf",
	"registry-hosts.toml":  "certs.d/" + registryService + "/hosts.toml",
}

func writeSettings(state State, record Record) error {
	for source, target := range settingsTargets {
		content, err := render("settings/"+source, settingsFiles, settingsFacts(state, record))
		if err != nil {
			return err
		}
		if err := writeFile(state.path(target), content, 0o644); err != nil {
			return fmt.Errorf("write %s: %w", target, err)
		}
	}
	return nil
}

func render(path string, files embed.FS, values any) ([]byte, error) {
	content, err := files.ReadFile(path)
	if err != nil {
		return nil, err
	}
	parsed, err := template.New(path).Option("missingkey=error").Parse(string(content))
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", path, err)
	}
	var text bytes.Buffer
	if err := parsed.Execute(&text, values); err != nil {
		return nil, fmt.Errorf("render %s: %w", path, err)
	}
	return text.Bytes(), nil
}
