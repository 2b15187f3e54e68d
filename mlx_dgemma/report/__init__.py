"""Reports of a trace: `page` makes one HTML page that shows every step, `plots` PNG files.

python -m mlx_dgemma.report run.npz -o run.html
"""
