"""The API told: what each route takes and answers, as an OpenAPI document made of the models that parse and say it."""
