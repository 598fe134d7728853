{{/* What pods of both components have in common. `.values` are those of the component: all values, or those of the gateway. */}}

{{- define "percore.serviceAccountName" -}}
{{- $own := printf "%s-%s" (include "percore.fullname" .root) .component -}}
{{- .values.serviceAccount.name | default (ternary $own "default" .values.serviceAccount.create) -}}
{{- end }}

{{- define "percore.serviceAccount" -}}
{{- if .values.serviceAccount.create }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "percore.serviceAccountName" . }}
  namespace: {{ include "percore.namespace" .root }}
  labels: {{- include "percore.labels" . | nindent 4 }}
  {{- with .values.serviceAccount.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: {{ .values.serviceAccount.automount }}
{{- end }}
{{- end }}

{{/* Labels and annotations of pods. */}}
{{- define "percore.podMetadata" -}}
labels: {{- toYaml (mergeOverwrite (dict) (.root.Values.commonLabels | default dict) (.values.podLabels | default dict) (include "percore.selector" . | fromYaml)) | nindent 2 }}
annotations: {{- toYaml (mergeOverwrite .annotations (.values.podAnnotations | default dict)) | nindent 2 }}
{{- end }}

{{/* Where a pod runs, and as what. */}}
{{- define "percore.placement" -}}
securityContext: {{- include "percore.podSecurity" .root | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $key := list "priorityClassName" "runtimeClassName" }}
{{- with get $.values $key }}
{{ $key }}: {{ . | quote }}
{{- end }}
{{- end }}
{{- range $key := list "dnsConfig" "hostAliases" "nodeSelector" "tolerations" "affinity" }}
{{- with get $.values $key }}
{{ $key }}: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* A constraint without a selector is about the pods of this component. */}}
{{- define "percore.spread" -}}
{{- $mine := dict "labelSelector" (dict "matchLabels" (include "percore.selector" . | fromYaml)) -}}
{{- range .values.topologySpreadConstraints }}
{{- if hasKey . "labelSelector" }}
{{ toYaml (list .) }}
{{- else }}
{{ toYaml (list (merge (dict) $mine .)) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "percore.disruptionBudget" -}}
{{- $budget := .values.podDisruptionBudget }}
{{- if $budget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ printf "%s-%s" (include "percore.fullname" .root) .component }}
  namespace: {{ include "percore.namespace" .root }}
  labels: {{- include "percore.labels" . | nindent 4 }}
spec:
  {{- if ne (include "percore.quantity" $budget.minAvailable) "" }}
  minAvailable: {{ include "percore.quantity" $budget.minAvailable }}
  {{- else }}
  maxUnavailable: {{ include "percore.quantity" $budget.maxUnavailable }}
  {{- end }}
  # A pod that is not ready takes no calls, so it may always be evicted.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "percore.selector" . | nindent 6 }}
{{- end }}
{{- end }}
