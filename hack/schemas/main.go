// Program schemas writes JSON schemas for kubeconform from files that are at hand: the OpenAPI document
// in the k8s.io/kubernetes module and folders of custom resource definitions. It needs no cluster and no network.
//
// Schemas are strict: a field that the API server would prune or refuse is an error.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

const usage = "usage: schemas SWAGGER.json FOLDER-OF-CRDS... OUT-FOLDER"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "schemas: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 3 {
		return errors.New(usage)
	}
	swagger, folders, out := args[0], args[1:len(args)-1], args[len(args)-1]
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	builtin, err := convertSwagger(swagger, out)
	if err != nil {
		return fmt.Errorf("failed to convert %q: %w", swagger, err)
	}
	custom := 0
	for _, folder := range folders {
		count, err := convertDefinitions(folder, out)
		if err != nil {
			return fmt.Errorf("failed to convert the definitions in %q: %w", folder, err)
		}
		custom += count
	}
	fmt.Printf("schemas: %d built-in kinds, %d of definitions\n", builtin, custom)
	return nil
}

type kind struct {
	Group, Version, Kind string
}

// file is the name that hack/chart-test gives kubeconform as its schema location.
// Where the group is empty (Service, Secret, …), kubeconform puts the version in its place.
func (k kind) file() string {
	if k.Group == "" {
		k.Group = k.Version
	}
	return strings.ToLower(fmt.Sprintf("%s_%s_%s.json", k.Group, k.Kind, k.Version))
}

// convertSwagger keeps every definition in one file and writes one small file per kind that refers to it.
func convertSwagger(path, out string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var document struct {
		Definitions map[string]map[string]any `json:"definitions"`
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return 0, err
	}
	count := 0
	for name, definition := range document.Definitions {
		kinds, err := kindsOf(definition)
		if err != nil {
			return 0, fmt.Errorf("definition %q: %w", name, err)
		}
		// Options and events of watches belong to every group; kubeconform never meets them.
		if len(kinds) != 1 {
			continue
		}
		reference := map[string]any{"$ref": "definitions.json#/definitions/" + name}
		if err := write(filepath.Join(out, kinds[0].file()), reference); err != nil {
			return 0, err
		}
		count++
	}
	for name, definition := range document.Definitions {
		// JSONSchemaProps refers to itself and takes extensions; the API server checks definitions when they are applied.
		if strings.HasSuffix(name, ".JSONSchemaProps") {
			document.Definitions[name] = map[string]any{"type": "object"}
			continue
		}
		tighten(definition)
	}
	return count, write(filepath.Join(out, "definitions.json"), map[string]any{"definitions": document.Definitions})
}

func kindsOf(definition map[string]any) ([]kind, error) {
	text, err := json.Marshal(definition["x-kubernetes-group-version-kind"])
	if err != nil {
		return nil, err
	}
	var kinds []kind
	return kinds, json.Unmarshal(text, &kinds)
}

// convertDefinitions writes one schema per version of each custom resource definition.
func convertDefinitions(folder, out string) (int, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
	if err != nil {
		return 0, err
	}
	count := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		var definition struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct {
						OpenAPIV3Schema map[string]any `json:"openAPIV3Schema"`
					}
				}
			}
		}
		if err := yaml.Unmarshal(text, &definition); err != nil {
			return 0, fmt.Errorf("%q: %w", file, err)
		}
		for _, version := range definition.Spec.Versions {
			schema := version.Schema.OpenAPIV3Schema
			properties, found := schema["properties"].(map[string]any)
			if !found {
				return 0, fmt.Errorf("%q: version %q has no schema", file, version.Name)
			}
			// Every object has these; a definition need not say so.
			for _, name := range []string{"apiVersion", "kind"} {
				properties[name] = map[string]any{"type": "string"}
			}
			properties["metadata"] = map[string]any{"$ref": "definitions.json#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
			tighten(schema)
			described := kind{Group: definition.Spec.Group, Version: version.Name, Kind: definition.Spec.Names.Kind}
			if err := write(filepath.Join(out, described.file()), schema); err != nil {
				return 0, err
			}
			count++
		}
	}
	if count == 0 {
		return 0, errors.New("no definition found")
	}
	return count, nil
}

// tighten turns what OpenAPI says in its own words into JSON schema, and refuses unknown fields of objects that list theirs.
func tighten(schema map[string]any) {
	if schema["x-kubernetes-int-or-string"] == true || schema["format"] == "int-or-string" {
		delete(schema, "type")
		delete(schema, "format")
		schema["anyOf"] = []any{map[string]any{"type": "integer"}, map[string]any{"type": "string"}}
	}
	// A quantity is text in the document, and a number is taken as well.
	if description, ok := schema["description"].(string); ok && strings.HasPrefix(description, "Quantity is a fixed-point") {
		schema["type"] = []any{"string", "number"}
	}
	if schema["nullable"] == true {
		if single, ok := schema["type"].(string); ok {
			schema["type"] = []any{single, "null"}
		}
		if values, ok := schema["enum"].([]any); ok {
			schema["enum"] = append(values, nil)
		}
	}
	if _, listed := schema["properties"]; listed && schema["additionalProperties"] == nil && schema["x-kubernetes-preserve-unknown-fields"] != true {
		schema["additionalProperties"] = false
	}
	for _, key := range []string{"items", "additionalProperties", "not"} {
		if inner, ok := schema[key].(map[string]any); ok {
			tighten(inner)
		}
	}
	if properties, ok := schema["properties"].(map[string]any); ok {
		for _, inner := range properties {
			if inner, ok := inner.(map[string]any); ok {
				tighten(inner)
			}
		}
	}
}

func write(path string, content any) error {
	text, err := json.Marshal(content)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}
