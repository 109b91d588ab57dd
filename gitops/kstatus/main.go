// Program kstatus says how tools of GitOps read recorded states of objects: Flux, kubectl and others by kstatus, Argo CD by our health checks.
//
// It reads one object as JSON a line and writes one judgement a line, in the same order.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"

	"chandler.dev/gitops/argocd"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "kstatus: %v\n", err)
		os.Exit(1)
	}
}

// Judgement is how one state is read.
type judgement struct {
	// Status is Current, InProgress, Failed or Terminating.
	Status  string `json:"status"`
	Message string `json:"message"`
	// Health is Argo CD's word, absent for kinds without a health check.
	Health *argocd.Health `json:"health,omitempty"`
}

func run(in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	results := json.NewEncoder(out)
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if len(line) > 0 {
			result, err := judge(line)
			if err != nil {
				return fmt.Errorf("line %d: %w", number, err)
			}
			if err := results.Encode(result); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}

func judge(line []byte) (judgement, error) {
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(line); err != nil {
		return judgement{}, fmt.Errorf("no object: %w", err)
	}
	computed, err := status.Compute(object)
	if err != nil {
		return judgement{}, fmt.Errorf("%s %q has no status that can be read: %w", object.GetKind(), object.GetName(), err)
	}
	result := judgement{Status: string(computed.Status), Message: computed.Message}
	if script := argocd.Script(object.GetKind()); script != "" {
		health, err := argocd.Run(script, object.Object)
		if err != nil {
			return judgement{}, fmt.Errorf("%s %q: %w", object.GetKind(), object.GetName(), err)
		}
		result.Health = &health
	}
	return result, nil
}
