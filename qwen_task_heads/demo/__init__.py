"""A demo of a model in the browser, with Gradio: titles ranked, texts labelled, words attributed."""
