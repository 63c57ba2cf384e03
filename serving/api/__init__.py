"""The API told: what each route takes and answers, as an OpenAPI document made from the models that parse and say it."""
