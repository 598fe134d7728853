"""Kustomize manifests, rendered from the Helm chart."""
