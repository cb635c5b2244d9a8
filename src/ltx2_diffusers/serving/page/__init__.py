"""The web page of the server: files of this folder, which browsers fetch, and the route that hands them out."""
