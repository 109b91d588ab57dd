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
