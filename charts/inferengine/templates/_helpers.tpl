{{/* Names and labels that several objects share, and the operator's rights. */}}

{{- define "inferengine.name" -}}
{{ printf "%s-operator" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "inferengine.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "inferengine.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* What selects the operator's pods: never changes. Network policies of embedded stores let pods of this name in. */}}
{{- define "inferengine.selector" -}}
app.kubernetes.io/name: inferengine-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "inferengine.labels" -}}
{{ include "inferengine.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (image, chart) */}}
{{- define "inferengine.reference" -}}
{{- $image := index . 0 }}
{{- $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default (index . 1).AppVersion }}{{ end }}
{{- end }}

{{- define "inferengine.image" -}}
{{ include "inferengine.reference" (list .Values.image .Chart) }}
{{- end }}

{{- define "inferengine.engineImage" -}}
{{ include "inferengine.reference" (list .Values.engineImage .Chart) }}
{{- end }}

{{/* As strict as the "restricted" standard of pod security. */}}
{{- define "inferengine.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "inferengine.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Where `helm test` makes its InferenceDeployment. */}}
{{- define "inferengine.testNamespace" -}}
{{ .Values.watchNamespace | default .Release.Namespace }}
{{- end }}

{{/* Exactly what the operator does with the objects that it looks after, in one namespace or in all. */}}
{{- define "inferengine.rules" -}}
# The resources: read by list and watch. Its finalizer is patched in, the status is applied.
- apiGroups: [inferengine.dev]
  resources: [inferencedeployments]
  verbs: [list, watch, patch]
- apiGroups: [inferengine.dev]
  resources: [inferencedeployments/status]
  verbs: [patch]
# What it makes: looked up before it is made, applied (which is `patch`, and `create` where there was none), pruned.
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps, persistentvolumeclaims, serviceaccounts, services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, list, watch, create, patch, delete]
# Keys: read by name, never listed or watched; made once and never changed. Endpoints beside them are kept right.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
# Labels by which tenants' Services find the pods that hold their cache.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end }}

{{/* Whether there are roles for people. They are the cluster's: a release for one namespace makes none where another has brought the definition. */}}
{{- define "inferengine.hasRolesForPeople" -}}
{{ if and .Values.rbac.create .Values.rbac.aggregate (or .Values.crds.enabled (not .Values.watchNamespace)) }}yes{{ end }}
{{- end }}

{{/* The test's pod must not look like an operator to whatever selects operators. */}}
{{- define "inferengine.testLabels" -}}
app.kubernetes.io/name: inferengine-test
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
