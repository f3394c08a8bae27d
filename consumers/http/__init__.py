"""The HTTP service: for gateways, bouncers, dashboards, people."""
