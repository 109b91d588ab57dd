{{/* Names and labels, and what more than one template says. */}}

{{- define "chandler.fullname" -}}
{{- if contains "chandler" .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-chandler" .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Selector labels of the operator's pod: never changed, since a Deployment's selector cannot be. */}}
{{- define "chandler.selectorLabels" -}}
app.kubernetes.io/name: chandler-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "chandler.labels" -}}
{{ include "chandler.selectorLabels" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: chandler
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* An image's full reference. Arguments: image (a map of values), registry (the one to fall back to), version. */}}
{{- define "chandler.image" -}}
{{- $registry := .image.registry | default .registry -}}
{{- with $registry }}{{ . | trimSuffix "/" }}/{{ end -}}
{{- .image.repository -}}
{{- if .image.digest -}}
@{{ .image.digest }}
{{- else -}}
:{{ .image.tag | default .version }}
{{- end -}}
{{- end -}}

{{- define "chandler.operatorImage" -}}
{{- include "chandler.image" (dict "image" .Values.image "registry" "" "version" .Chart.AppVersion) -}}
{{- end -}}

{{- define "chandler.runtimeImage" -}}
{{- include "chandler.image" (dict "image" .Values.runtime.image "registry" .Values.image.registry "version" .Chart.AppVersion) -}}
{{- end -}}

{{- define "chandler.runtimeCudaImage" -}}
{{- $registry := .Values.runtime.image.registry | default .Values.image.registry -}}
{{- include "chandler.image" (dict "image" .Values.runtime.cudaImage "registry" $registry "version" .Chart.AppVersion) -}}
{{- end -}}

{{- define "chandler.vllmImage" -}}
{{- include "chandler.image" (dict "image" .Values.engines.vllm.image "registry" "" "version" .Chart.AppVersion) -}}
{{- end -}}

{{- define "chandler.transformersImage" -}}
{{- include "chandler.image" (dict "image" .Values.engines.transformers.image "registry" "" "version" .Chart.AppVersion) -}}
{{- end -}}

{{/* What the operator may do in a namespace that it serves, and why. */}}
{{- define "chandler.namespacedRules" }}
  # Users' deployments: read, and written to in their status alone.
  - apiGroups: [chandler.dev]
    resources: [modeldeployments]
    verbs: [get, list, watch]
  - apiGroups: [chandler.dev]
    resources: [modelcaches]
    verbs: [list, watch, create, patch, delete]
  - apiGroups: [chandler.dev]
    resources: [modeldeployments/status, modelcaches/status]
    verbs: [patch]
  # Some platforms let only those set an owner reference who could also write the owner's finalizers.
  - apiGroups: [chandler.dev]
    resources: [modeldeployments/finalizers, modelcaches/finalizers]
    verbs: [update]
  # The children of a ModelDeployment and a ModelCache.
  - apiGroups: [apps]
    resources: [deployments]
    verbs: [get, list, watch, create, patch]
  # One for each pod template, so that an older one can be served again.
  - apiGroups: [apps]
    resources: [controllerrevisions]
    verbs: [list, watch, create, patch, delete]
  - apiGroups: [batch]
    resources: [jobs]
    verbs: [list, watch, create, patch, delete]
  - apiGroups: [""]
    resources: [services, persistentvolumeclaims]
    verbs: [get, list, watch, create, patch]
  # A model with several replicas keeps one while nodes are drained.
  - apiGroups: [policy]
    resources: [poddisruptionbudgets]
    verbs: [get, list, watch, create, patch]
  # Why a pod does not start stands in its status.
  - apiGroups: [""]
    resources: [pods]
    verbs: [list, watch]
  - apiGroups: [events.k8s.io]
    resources: [events]
    verbs: [create, patch]
{{- end }}
