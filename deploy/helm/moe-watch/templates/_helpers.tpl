{{- define "moe-watch.name" -}}{{ printf "%s-moe-watch" .Release.Name | trunc 50 | trimSuffix "-" }}{{- end }}
{{- define "moe-watch.selector" -}}
app.kubernetes.io/name: moe-watch
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "moe-watch.labels" -}}
{{ include "moe-watch.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
{{- define "moe-watch.secret" -}}{{ .Values.sidecar.existingSecret | default (include "moe-watch.name" .) }}{{- end }}
{{- /* How the sidecar answers: HTTPS once sidecar.env sets a certificate. */}}
{{- define "moe-watch.scheme" -}}
{{- $scheme := "HTTP" }}
{{- range .Values.sidecar.env }}{{ if eq .name "MOE_WATCH_HTTP__TLS_CERT" }}{{ $scheme = "HTTPS" }}{{ end }}{{ end }}
{{- $scheme }}
{{- end }}
