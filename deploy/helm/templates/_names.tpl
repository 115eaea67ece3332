{{- define "sca.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "sca.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sca.labels" -}}
{{ include "sca.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "sca.settings" -}}
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  value: {{ if kindIs "float64" $value }}{{ printf "%v" (eq $value (floor $value) | ternary (int64 $value) $value) | quote }}{{ else }}{{ $value | quote }}{{ end }}
{{- end }}
- name: SCA_BRIDGE_DRAIN_S
  value: {{ .Values.drainS | quote }}
{{- end }}

{{- define "sca.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
