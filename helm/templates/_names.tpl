{{/* Names and labels, and the one place that turns values into TOML. */}}

{{- define "querywarden.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "querywarden.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "querywarden.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "querywarden.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "querywarden.selector" -}}
app.kubernetes.io/name: {{ include "querywarden.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "querywarden.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "querywarden.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* The Deployments there are, as a JSON list. */}}
{{- define "querywarden.components" -}}
{{- if .Values.serve.enabled -}}["ingest","detect","serve"]{{- else -}}["ingest","detect"]{{- end -}}
{{- end -}}

{{- define "querywarden.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "querywarden.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "querywarden.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "querywarden.usesSasl" -}}
{{- if hasPrefix "SASL_" .Values.config.kafka.security_protocol }}true{{ end -}}
{{- end -}}

{{- define "querywarden.hasKafkaCa" -}}
{{- if or .Values.kafka.ca.existingSecret .Values.kafka.ca.existingConfigMap }}true{{ end -}}
{{- end -}}

{{/* Pod Security Standard "restricted", and a root file system that nobody writes to. */}}
{{- define "querywarden.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Helm reads every number as a float; TOML and the service tell 30 from 30.0. JSON strings and lists are TOML too. */}}
{{- define "querywarden.tomlValue" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ printf "%d" (int64 .) }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end -}}

{{/* A table of settings: plain keys first, then one [section] for each nested map. Arguments: path, table. */}}
{{- define "querywarden.toml" -}}
{{- $path := .path -}}
{{- if $path }}
[{{ $path }}]
{{ end -}}
{{- range $key, $value := .table }}{{ if not (kindIs "map" $value) -}}
{{ $key }} = {{ include "querywarden.tomlValue" $value }}
{{ end }}{{ end -}}
{{- range $key, $value := .table }}{{ if kindIs "map" $value -}}
{{ include "querywarden.toml" (dict "path" (ternary (printf "%s.%s" $path $key) $key (ne $path "")) "table" $value) }}
{{- end }}{{ end -}}
{{- end -}}
