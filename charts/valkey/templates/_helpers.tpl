{{/* Names, labels, and the users with their passwords, which several Secrets need. */}}

{{- define "valkey.name" -}}
{{ printf "%s-valkey" (.Release.Name | trunc 40 | trimSuffix "-") }}
{{- end }}

{{- define "valkey.selector" -}}
app.kubernetes.io/name: inferengine-valkey
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "valkey.labels" -}}
{{ include "valkey.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The test's pod must not be taken for the store by what selects the store. */}}
{{- define "valkey.testSelector" -}}
app.kubernetes.io/name: inferengine-valkey-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "valkey.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "valkey.secret" -}}
{{ .Values.existingSecret | default (include "valkey.name" .) }}
{{- end }}

{{- define "valkey.claim" -}}
{{ .Values.persistence.existingClaim | default (include "valkey.name" .) }}
{{- end }}

{{/* What valkey-cli has to be told, each with a comma before it. */}}
{{- define "valkey.cliOptions" -}}
{{ if .Values.tls.secretName }}, --tls, --cacert, /etc/valkey-tls/ca.crt{{ end }}
{{- end }}

{{/* (everything, user, password) */}}
{{- define "valkey.url" -}}
{{- $all := index . 0 }}
{{- $url := printf "%s:%s@%s.%s.svc:6379" (index . 1) (index . 2) (include "valkey.name" $all) $all.Release.Namespace }}
{{- if not $all.Values.tls.secretName }}redis://{{ $url }}
{{- else }}rediss://{{ $url }}{{ with $all.Values.tls.caFile }}?ssl_ca_certs={{ . | urlquery }}{{ end }}
{{- end }}
{{- end }}

{{/* Whether `helm test` has something to do: users of a Secret of one's own are not known here. */}}
{{- define "valkey.isTested" -}}
{{ if and .Values.test.enabled (not .Values.existingSecret) }}yes{{ end }}
{{- end }}

{{/* As strict as the "restricted" standard of pod security. */}}
{{- define "valkey.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "valkey.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/*
All users with their passwords, as JSON: {"admin": password, "users": [{name, namespace, deployment, secretName, password}]}.
A password that a Secret has already stays. What is new is made at random once, and kept among the values while this
release is rendered, since several templates have to see the same.
*/}}
{{- define "valkey.accounts" -}}
{{- if not (hasKey .Values "accounts") }}
{{- $users := list }}
{{- $given := .Values.users }}
{{- if eq (include "valkey.isTested" .) "yes" }}
{{- $given = append $given (dict "name" "test" "namespace" .Release.Namespace "deployment" "helm-test") }}
{{- end }}
{{- range $given }}
{{- $secretName := .secretName | default (printf "%s-%s" (include "valkey.name" $) .name) }}
{{- $password := include "valkey.password" (list .namespace $secretName "password") }}
{{- $users = append $users (merge (dict "secretName" $secretName "password" $password) .) }}
{{- end }}
{{- $names := list "admin" "default" }}
{{- $secrets := list (printf "%s/%s" .Release.Namespace (include "valkey.name" .)) }}
{{- range $users }}
{{- $secret := printf "%s/%s" .namespace .secretName }}
{{- if has .name $names }}
{{- fail (printf "users: the name %q is taken: give each user another; admin, default and test are the chart's own" .name) }}
{{- end }}
{{- if has $secret $secrets }}
{{- fail (printf "users: the Secret %s would be made twice: give user %s another secretName" $secret .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- $secrets = append $secrets $secret }}
{{- end }}
{{- $admin := include "valkey.password" (list .Release.Namespace (include "valkey.name" .) "admin.password") }}
{{- $_ := set .Values "accounts" (dict "admin" $admin "users" $users) }}
{{- end }}
{{- toJson .Values.accounts }}
{{- end }}

{{/* (namespace, Secret, key): what is there, or a new one. */}}
{{- define "valkey.password" -}}
{{- $found := lookup "v1" "Secret" (index . 0) (index . 1) }}
{{- $data := (default dict $found).data | default dict }}
{{- if hasKey $data (index . 2) }}{{ index $data (index . 2) | b64dec }}{{ else }}{{ randAlphaNum 32 }}{{ end }}
{{- end }}

{{/*
The users' file. A limited user sees the keys of its deployment (server/infer_server/contract/keys.py) or of all in its
namespace, and may neither administer the server nor change functions, which others run too.
*/}}
{{- define "valkey.acl" -}}
{{- $accounts := include "valkey.accounts" . | fromJson -}}
user default off
user admin on #{{ $accounts.admin | sha256sum }} ~* &* +@all
{{- range $accounts.users }}
{{- $place := printf "%s/%s" .namespace (.deployment | default "*") }}
user {{ .name }} on #{{ .password | sha256sum }} ~inferengine:{{ printf "{%s}" $place }}:*
{{- if .deployment }} ~inferengine:{{ printf "{%s/*}" $place }}:*{{ end }} &inferengine:{{ printf "{%s}" $place }}:*
{{- "" }} +@all -@admin -@dangerous -@scripting +eval +evalsha +script|load +fcall +function|list
{{- end }}
{{ end }}

{{/* Where users' pods run, each once, as JSON. */}}
{{- define "valkey.namespaces" -}}
{{- $found := list }}
{{- range .Values.users }}{{ $found = append $found .namespace }}{{ end }}
{{- $found | uniq | sortAlpha | toJson }}
{{- end }}
